"""A method or way of decoding with an option that it cannot have is refused in a sentence, never becomes another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from samkv_rag import SamKV, SamKVError
from samkv_rag.methods import METHODS, CacheBlend, Epic, InfoFlow, MultiInfLLM, ProphetKV, Random, RandomRest
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.options import Options
from tests.models import tiny_engine

WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (SamKV, {"keep": 1.2}, "keep must be a number, 0 to 1, not 1.2"),
    (SamKV, {"keep": float("nan")}, "keep must be"),
    (SamKV, {"keep": "0.5"}, "keep must be a number"),
    (SamKV, {"keep": True}, "keep must be a number"),
    (SamKV, {"settle": "afer"}, "settle must be 'before' or 'after', not 'afer'"),
    (SamKV, {"look": "key"}, "'keys' or 'two_stage'"),
    (SamKV, {"theta": 7}, "theta must be a number, 0 to 1 or 'cosine'"),
    (SamKV, {"theta": "sine"}, "theta must be"),
    (SamKV, {"initial": -3}, "initial must be a whole number, 0 or more"),
    (SamKV, {"layers": 2}, "layers must be a tuple of which each part is a whole number or None"),
    (SamKV, {"layers": (1.5,)}, "layers must be"),
    (SamKV, {"block": 0}, "block must be a whole number, 1 to 65536 or None"),
    (SamKV, {"block": 10**30}, "block must be a whole number, 1 to 65536 or None"),
    (SamKV, {"bias": "no"}, "bias must be True or False"),
    (SamKV, {"around": (-1, 2)}, "around must be"),
    (SamKV, {"around": (1, 2, 3)}, "around must be a tuple of 2 parts: a whole number, 0 or more; a whole"),
    (SamKV, {"candidates": 0.5}, "candidates must be a number, 1 or more"),
    (SamKV, {"candidates": 10**400}, "candidates must be a number, 1 or more"),
    (MultiInfLLM, {"keep": -1}, "multi_infllm: keep must be"),
    (MultiInfLLM, {"block": 8}, "block must be a multiple of 16"),
    (Random, {"keep": 3}, "random: keep must be"),
    (Random, {"seed": 1 << 70}, "random: seed must be a whole number"),
    (RandomRest, {"seed": -(1 << 70)}, "random_rest: seed must be a whole number"),
    (CacheBlend, {"check": -1}, "cacheblend: check must be"),
    (ProphetKV, {"share": 2}, "prophetkv: share must be"),
    (InfoFlow, {"band": (0.5, 2)}, "infoflow: band must be"),
    (InfoFlow, {"band": (0.8, 0.2)}, "the lower end and the upper"),
    (InfoFlow, {"band": (0.5,)}, "band must be a tuple of 2 parts"),
    (Epic, {"tokens": -1}, "epic: tokens must be"),
    (GenerationOptions, {"max_new_tokens": 0}, "max_new_tokens must be a whole number, 1 or more, not 0"),
    (GenerationOptions, {"temperature": -0.1}, "temperature must be a number, 0 or more"),
    (GenerationOptions, {"top_p": 0}, "top_p must be above 0"),
    (GenerationOptions, {"stop": ""}, "stop text is empty"),
    (GenerationOptions, {"stop": ["x", ""]}, "stop text is empty"),
    (GenerationOptions, {"seed": 1 << 64}, "seed must be"),
    (GenerationOptions, {"top_k": 2.5}, "top_k must be a whole number, 1 or more or None"),
    (GenerationOptions, {"seed": "one"}, "seed must be a whole number or None"),
    (GenerationOptions, {"stop": 3}, "stop must be text or a tuple of which each part is text"),
]


@pytest.mark.parametrize(("kind", "options", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_what_an_option_cannot_be_is_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SamKVError) as refusal:
        kind(**options)
    assert words in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_list_is_taken_for_a_tuple() -> None:
    assert SamKV(layers=[1, 3], around=[2, 4]) == SamKV(layers=(1, 3), around=(2, 4))  # type: ignore[arg-type]
    assert hash(SamKV(layers=[1, 3])) == hash(SamKV(layers=(1, 3)))  # type: ignore[arg-type]


TAKEN: list[dict[str, Any]] = [
    {"temperature": 2},
    {"temperature": np.float32(0.5), "top_p": np.float32(0.9), "top_k": np.int64(5), "seed": np.int64(1)},
    {"max_new_tokens": np.uint8(200)},
    {"method": SamKV(early=2)},
    {"method": SamKV(around=(np.int64(1), np.int64(2)), early=np.int64(1))},  # type: ignore[arg-type]
    {"method": SamKV(look="two_stage", candidates=math.inf)},
]


@pytest.mark.parametrize("options", TAKEN, ids=str)
def test_a_number_of_any_kind_that_fits_is_taken(options: dict[str, Any]) -> None:
    engine, chunks = tiny_engine(), ["The mill is in Orrin, where Ana Petrov lived from 1987 on."]
    engine.precompute(chunks)
    assert engine.answer("Who?", chunks, **{"max_new_tokens": 2, **options}).token_ids


def test_numbers_become_what_their_type_says() -> None:
    options = GenerationOptions(max_new_tokens=np.uint8(200), temperature=2)  # type: ignore[arg-type]
    assert type(options.max_new_tokens) is int and type(options.temperature) is float
    assert type(SamKV(theta=1).theta) is float and SamKV(theta="cosine").theta == "cosine"


def test_a_stop_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(SamKVError, match="half of a surrogate pair"):
        tiny_engine().answer("Who?", ["The mill is in Orrin."], stop="\ud800")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_with_options_checks_them(name: str) -> None:
    kind = METHODS[name]
    assert not kind.__annotations__ or issubclass(kind, Options)
    kind()
