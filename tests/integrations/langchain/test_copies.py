"""Copies of a chat model share its engine, and each answers with its own method; a given engine is left unchanged."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField

from langchain_samkv import ChatSamKV
from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from samkv_rag.methods.full import Full
from tests.integrations.langchain.conftest import ASKED, CHUNKS, roomy_model
from tests.models import byte_tokenizer


def configured(llm: ChatSamKV, **fields: Any) -> ChatSamKV:
    """The copy that answers when LangChain is given these fields."""
    changing = llm.configurable_fields(**{name: ConfigurableField(id=name) for name in fields})
    return changing.prepare({"configurable": fields})[0]  # type: ignore[return-value]


def test_configured_calls_go_on_with_the_engine() -> None:
    llm = ChatSamKV(model=roomy_model(), tokenizer=byte_tokenizer(chat=True), kv_store=":memory:", max_tokens=2)
    engine = llm.engine
    for field, value in {"temperature": 0.7, "keep": 0.3, "method": "full", "max_tokens": 3}.items():
        assert configured(llm, **{field: value}).engine is engine
    assert configured(llm, namespace="ada").engine is configured(llm, namespace="ada").engine is not engine
    assert configured(llm, min_kept_tokens=0).engine.min_kept_tokens == 0


def test_a_configured_method_is_that_copys_alone() -> None:
    llm = ChatSamKV(
        model=roomy_model(), tokenizer=byte_tokenizer(chat=True), kv_store=":memory:", max_tokens=2, min_kept_tokens=0
    )
    full = configured(llm, method="full")
    full.engine.precompute(CHUNKS)
    copies = (full, llm, configured(llm, method="samkv"), configured(llm, method=SamKV(rest="drop")))
    reports = [copy.invoke(ASKED).response_metadata["samkv"] for copy in copies]
    assert [report["method"] for report in reports] == ["full", "samkv", "samkv", "samkv"]
    assert [report["kept_ratio"] == 1 for report in reports] == [True, True, True, False], "the name is the default's"
    assert full.invoke(ASKED, method="samkv").response_metadata["samkv"]["kept_ratio"] == 1
    assert llm._identifying_params["method"] == repr(SamKV()), "what an answer is remembered by"


def test_a_configured_call_keeps_a_given_engines_method(engine: SamKVEngine) -> None:
    engine.method = Full()
    engine.precompute(CHUNKS)
    llm = configured(ChatSamKV(engine=engine, max_tokens=2), temperature=0.5)
    assert llm.engine is engine and llm.invoke(ASKED).response_metadata["samkv"]["method"] == "full"


def test_copies_share_the_engine_and_only_named_models_are_pickled(llm: ChatSamKV) -> None:
    assert copy.deepcopy(llm).engine is llm.engine is llm.model_copy(update={"temperature": 0.5}).engine
    named = ChatSamKV(kv_store=":memory:", keep=0.3)
    assert copy.deepcopy(named).engine is named.engine
    again = pickle.loads(pickle.dumps(named))
    assert (again.kv_store, again.keep) == (":memory:", 0.3) and again.engine is not named.engine
    for given in (llm, ChatSamKV(model=roomy_model()), ChatSamKV(kv_store=ChunkKVStore())):
        with pytest.raises(SamKVError, match="name its model and the folder"):
            pickle.dumps(given)
