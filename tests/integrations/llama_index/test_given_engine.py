"""An LLM over a given engine: what else is passed is as the engine has it, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from llama_index.llms.samkv import SamKVLLM
from samkv_rag import SamKVError
from samkv_rag.methods import CacheBlend
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
