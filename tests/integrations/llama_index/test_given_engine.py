"""An LLM over a given engine: what else is passed is as the engine has it, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from llama_index.llms.samkv import ChunkKVVectorStore, SamKVLLM
from samkv_rag import SamKVError
from samkv_rag.methods import CacheBlend, SamKV
from tests.integrations.llama_index.kit import make_engine, make_llm


def test_a_given_engine_says_how_many_tokens_are_kept_at_least() -> None:
    engine = make_engine(min_kept_tokens=7)
    assert SamKVLLM(engine=engine).min_kept_tokens == make_llm(engine).min_kept_tokens == 7
    with pytest.raises(SamKVError, match="has min_kept_tokens=7, not 0"):
        _ = make_llm(engine, min_kept_tokens=0).engine


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv_store", "./elsewhere"),
        ("device_map", "cuda:7"),
        ("dtype", "bfloat16"),
        ("model_kwargs", {"revision": "main"}),
        ("kv_dtype", "int4"),
    ],
)
def test_what_is_said_beside_an_engine_that_has_it_otherwise_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SamKVError, match=f"The engine that was given has {name}="):
        SamKVLLM(engine=make_engine(), **{name: value})


def test_what_is_no_vector_store_is_refused() -> None:
    with pytest.raises(SamKVError, match="wraps a vector store, not a str"):
        ChunkKVVectorStore("store", make_engine())  # type: ignore[arg-type]


def test_caches_are_stored_as_it_is_said() -> None:
    llm, given = SamKVLLM(model_name="bundled-small", kv_store=":memory:", kv_dtype="int4"), make_engine(kv_dtype="fp8")
    assert llm.engine.source.kv_dtype == "int4" and SamKVLLM(engine=given).kv_dtype == "fp8"
    assert make_llm(given).engine is given


def test_what_an_engine_has_may_be_said_again() -> None:
    engine = make_engine()
    llm = SamKVLLM.from_engine(engine, dtype="auto", device_map=None, model_name="ours")
    assert llm.engine is engine and llm.kv_store == ":memory:"


@pytest.mark.parametrize("method", ["full", CacheBlend()])
def test_a_keep_that_the_method_has_no_use_for_is_refused_at_once(method: Any) -> None:
    for engine in (None, make_engine()):
        with pytest.raises(SamKVError, match="has no keep"):
            SamKVLLM(engine=engine, method=method, keep=0.3)
        assert SamKVLLM(engine=engine, keep=0.3).keep == 0.3
    with pytest.raises(SamKVError, match="has no keep"):
        SamKVLLM(engine=make_engine(method="reuse"), keep=0.3)


def test_what_cannot_be_saved_has_to_be_passed_again() -> None:
    method, kwargs = SamKV(keep=0.4), {"attn_implementation": "eager"}
    saved = SamKVLLM(method=method, model_kwargs=kwargs, kv_store=":memory:").to_dict()
    assert saved["not_saved"] == ["model_kwargs", "method"]
    for rest in ({}, {"method": method}):
        with pytest.raises(SamKVError, match="model_kwargs could not be saved|method, model_kwargs could not be saved"):
            SamKVLLM.from_dict(saved, **rest)
    made = SamKVLLM.from_dict(saved, method=method, model_kwargs=kwargs)
    assert (made.method, made.model_kwargs, made.kv_store) == (method, kwargs, ":memory:")
    plain = SamKVLLM(method="reuse", kv_store=":memory:")
    assert SamKVLLM.from_dict(plain.to_dict()).to_dict() == plain.to_dict()


def test_two_names_of_one_option_are_the_same_or_an_error() -> None:
    llm = make_llm()
    assert len(llm.complete("x", max_tokens=2, max_new_tokens=2).raw["usage"]) and llm.complete("x", max_tokens=2)
    with pytest.raises(SamKVError, match="max_tokens and max_new_tokens mean the same, and differ here"):
        llm.complete("x", max_tokens=3, max_new_tokens=5)
