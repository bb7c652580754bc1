"""LangChain's answer caches: what one model answered is never served for another that may answer otherwise."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache

from langchain_samkv import ChatSamKV
from samkv_rag import Full, SamKV, SamKVEngine
from tests.integrations.langchain.conftest import roomy_model
from tests.models import build, byte_tokenizer, tiny_engine

Given = dict[str, Any]


def engine(**options: Any) -> SamKVEngine:
    """An engine over the one model, with options of its own."""
    return SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(chat=True), ":memory:", **options)


def key(fields: Given) -> str:
    return ChatSamKV(**fields)._get_llm_string()


def another_model() -> Any:
    return build(deepcopy(roomy_model().config), sharpen=8.0)


def another_template() -> Any:
    tokenizer = deepcopy(byte_tokenizer(chat=True))
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")
    return tokenizer


def same_named(model: Any) -> Given:
    return {"model": model, "tokenizer": byte_tokenizer(chat=True), "kv_store": ":memory:"}


DIFFERENT = {
    "engines' methods": lambda: [{"engine": engine(method=method)} for method in (SamKV(keep=0.1), Full())],
    "engines' namespaces": lambda: [{"engine": engine(namespace=name)} for name in ("ada", "grace")],
    "engines' cache formats": lambda: [{"engine": engine(kv_dtype=dtype)} for dtype in ("model", "int8")],
    "engines' models": lambda: [{"engine": engine()}, {"engine": tiny_engine(chat=True)}],
    "fields beside an engine": lambda: [{"engine": engine(), "temperature": heat} for heat in (0.0, 1.0)],
    "weights of one name": lambda: [same_named(model) for model in (roomy_model(), another_model())],
    "dtypes": lambda: [{"dtype": dtype} for dtype in ("float32", "bfloat16")],
    "devices": lambda: [{"device_map": device} for device in ("cpu", "cuda:0")],
    "named tokenizers": lambda: [{"tokenizer": name} for name in ("no/such", "no/other")],
    "chat templates": lambda: [
        {**same_named(roomy_model()), "tokenizer": tokenizer}
        for tokenizer in (byte_tokenizer(chat=True), another_template())
    ],
}


@pytest.mark.parametrize("made", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_changes_answers_changes_the_key(made: Any) -> None:
    one, other = made()
    assert key(one) == key(one) != key(other)


def test_stop_and_keywords_of_a_call_are_in_the_key() -> None:
    llm = ChatSamKV(stop=["x"])
    keys = {llm._get_llm_string(), llm._get_llm_string(stop=["y"]), llm._get_llm_string(keep=0.5)}
    assert len(keys) == 3 and llm._get_llm_string(stop=["x"]) in keys


async def test_engines_that_share_a_cache_keep_their_answers_apart() -> None:
    answers, cache = [], InMemoryCache()
    for method in (SamKV(keep=0.1), Full(), Full()):
        llm = ChatSamKV(engine=engine(method=method), max_tokens=2, cache=cache)
        answers += [llm.invoke("Hello"), await llm.ainvoke("Hello")]
    methods = [answer.response_metadata["samkv"]["method"] for answer in answers]
    assert methods == ["samkv", "samkv", "full", "full", "full", "full"]
    assert len(cache._cache) == 2
