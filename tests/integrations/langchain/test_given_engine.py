"""What a `ChatSamKV` is made of: keywords, and an engine that is given beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document

from langchain_samkv import ChatSamKV, precompute
from samkv_rag import ChunkKVStore, SamKVEngine, SamKVError
from samkv_rag.methods import CacheBlend
from tests.integrations.langchain.conftest import roomy_model
from tests.models import byte_tokenizer


def test_a_given_engine_says_how_many_tokens_are_kept_at_least(engine: SamKVEngine) -> None:
    assert ChatSamKV(engine=engine).min_kept_tokens == engine.min_kept_tokens
    with pytest.raises(SamKVError, match=f"has min_kept_tokens={engine.min_kept_tokens}, not 5"):
        ChatSamKV(engine=engine, min_kept_tokens=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("namespace", "other"),
        ("kv_store", "./elsewhere"),
        ("kv_store", ChunkKVStore(":memory:")),
        ("tokenizer", byte_tokenizer()),
        ("device_map", "cuda:7"),
        ("dtype", "bfloat16"),
        ("dtype", torch.float16),
        ("model_kwargs", {"revision": "main"}),
        ("kv_dtype", "int4"),
    ],
)
def test_what_is_said_beside_an_engine_that_has_it_otherwise_is_refused(
    engine: SamKVEngine, name: str, value: Any
) -> None:
    with pytest.raises(SamKVError, match=f"The engine that was given has {name}="):
        ChatSamKV(engine=engine, **{name: value})


@pytest.mark.parametrize("name", ["kv_type", "max_new_tokens", "api_base"])
def test_a_keyword_that_it_has_not_is_refused(name: str) -> None:
    with pytest.raises(SamKVError, match=f"ChatSamKV has no {name}; it has: .*kv_dtype"):
        ChatSamKV(**{name: 1})


def test_names_of_old_and_what_langchain_gives_every_model_are_taken() -> None:
    llm = ChatSamKV(model_name="bundled-small", stop_sequences=["x"], api_key="none", max_retries=2)
    assert (llm.model, llm.stop) == ("bundled-small", ["x"])


def test_caches_are_stored_as_it_is_said(engine: SamKVEngine) -> None:
    llm = ChatSamKV(model=engine.source.model, tokenizer=engine.tokenizer, kv_store=":memory:", kv_dtype="int4")
    assert llm.engine.source.kv_dtype == ChatSamKV(engine=llm.engine).kv_dtype == "int4"
    assert "int4" in llm._get_llm_string()


def test_what_an_engine_has_may_be_said_again(tmp_path: Path) -> None:
    given = SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(), str(tmp_path / "kv"), dtype="float32")
    for store in (given.store, str(tmp_path / "kv"), tmp_path / "kv", tmp_path / "." / "kv"):
        llm = ChatSamKV(engine=given, kv_store=store, dtype=torch.float32, tokenizer=given.source.tokenizer)
        assert llm.engine is given
    assert ChatSamKV(engine=given, dtype="float32", device_map=None, model="ours").engine is given


@pytest.mark.parametrize("method", ["full", CacheBlend()])
def test_a_keep_that_the_method_has_no_use_for_is_refused_at_once(engine: SamKVEngine, method: Any) -> None:
    for made_of in ({"method": method}, {"method": method, "engine": engine}):
        with pytest.raises(SamKVError, match="has no keep"):
            ChatSamKV(keep=0.3, **made_of)
    assert ChatSamKV(keep=0.3, engine=engine).keep == ChatSamKV(keep=0.3).keep == 0.3


def test_a_given_engine_serves_no_other_namespace(engine: SamKVEngine) -> None:
    with pytest.raises(SamKVError, match="has namespace='default', not 'other'"):
        ChatSamKV(engine=engine, namespace="other")
    assert ChatSamKV(engine=engine, namespace="default").engine is engine


def test_what_is_cached_may_be_one_text_and_must_be_text() -> None:
    engine = SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(), ":memory:")
    text = "The harbour mill was built by Edith Sorel in 1874, and ground barley until a storm broke its wheel in 1931."
    assert precompute(engine, text) == precompute(engine, Document(page_content=text)) == 1
    assert [record.length for _, record in engine.store.records()] == [len(text)]
    with pytest.raises(SamKVError, match="Item 1 of the documents is no Document and no text, but 5"):
        precompute(engine, [text, 5])  # type: ignore[list-item]
