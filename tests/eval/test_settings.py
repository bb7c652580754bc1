"""Methods from one line of text: every form, every refusal, and what the sweep makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from samkv_rag import SamKV
from samkv_rag.errors import SamKVError
from samkv_rag.eval.settings import parse, settings, split, written
from samkv_rag.methods import METHODS, CacheBlend, Epic, Random, Reuse
from samkv_rag.types import PromptPlan, Question, Segment

FORMS: dict[str, Any] = {
    "reuse": Reuse(),
    "samkv": SamKV(),
    "samkv.paper": SamKV.paper(),
    "samkv:recompute=0.33,look=bound": SamKV(recompute=0.33, look="bound"),
    "samkv:layers=1+3,bias=false": SamKV(layers=(1, 3), bias=False),
    "samkv:theta=cosine": SamKV(theta="cosine"),
    "samkv:theta=0.9": SamKV(theta=0.9),
    "samkv.paper:initial=4": SamKV(
        settle="before", look="pooled", initial=4, local=16, dynamic=True, per_chunk=True, fill=False
    ),
    "samkv:around=2+4": SamKV(around=(2, 4)),
    "cacheblend:check=2": CacheBlend(check=2),
    "random:seed=3": Random(seed=3),
}

REFUSED = {
    "sam": "choose one of",
    "samkv.best": "no recipe",
    "samkv.prepare": "no recipe",
    "samkv:kept=1": "it has: keep, recompute",
    "reuse:keep=1": "it has: none",
    "samkv:look=far": "choose one of keys",
    "samkv:keep=much": "could not convert",
    "samkv:bias=yes": "true or false",
    "samkv:keep=2": "0 to 1",
}


@pytest.mark.parametrize("text", FORMS)
def test_a_form_means_a_method(text: str) -> None:
    assert parse(text)[0] == FORMS[text]


@pytest.mark.parametrize("text", FORMS)
def test_a_method_is_written_as_it_would_be_asked_for(text: str) -> None:
    assert parse(written(FORMS[text]))[0] == FORMS[text]


def test_what_is_as_by_default_is_not_written() -> None:
    method = SamKV(keep=0.15, rest="drop", layers=(1, 3), bias=False)
    assert written(method) == "samkv:rest=drop,layers=1+3,bias=False"
    assert [written(one) for one in (SamKV(), Reuse())] == ["samkv", "reuse"]


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(SamKVError, match=REFUSED[text]):
        parse(text)


def test_a_comma_before_an_option_continues_the_method() -> None:
    line = "full, samkv:recompute=0.33,look=bound,samkv.paper,cacheblend:share=0.2,check=2,epic"
    assert split(line) == [
        "full", "samkv:recompute=0.33,look=bound", "samkv.paper", "cacheblend:share=0.2,check=2", "epic",
    ]  # fmt: skip


def test_the_sweep_goes_over_what_a_method_has_and_full_is_always_there() -> None:
    labels = [one.label for one in settings("reuse,samkv,cacheblend,samkv:keep=0.3,no_context", [0.15, 1.0])]
    assert labels == [
        "full", "reuse", "samkv@0.15", "samkv@1", "cacheblend@0.15", "cacheblend@1", "samkv:keep=0.3", "no_context",
    ]  # fmt: skip


def test_identical_settings_come_once() -> None:
    assert [one.label for one in settings("full,samkv,samkv:recompute=1", [0.15, 0.15])] == ["full", "samkv@0.15"]


def test_every_method_that_has_something_to_sweep_is_swept() -> None:
    swept = {name: parse(name)[0] for name in METHODS}
    found = {one.name: one.swept for one in settings(",".join(swept), [0.5])}
    assert {name for name, field in found.items() if field is None} == {"full", "reuse", "no_context"}


def plan_of(lengths: list[int]) -> PromptPlan:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    chunks = [Segment("chunk", "", (7,) * n, start, "k") for n, start in zip(lengths, starts, strict=True)]
    return PromptPlan(tuple(chunks), Question("", (7,), sum(lengths) - 1))


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5])
def test_the_tokens_of_epic_are_those_that_make_the_share(ratio: float) -> None:
    one = next(one for one in settings("epic", [ratio]) if one.name == "epic")
    method = one.method(plan_of([100] * 5))
    assert isinstance(method, Epic)
    assert abs(4 * method.tokens / 500 - ratio) < 2.5 / 500


def test_a_share_goes_into_the_method_as_it_is() -> None:
    found = [one.method(plan_of([10])) for one in settings("samkv,cacheblend", [0.25])]
    assert found[1:] == [SamKV(keep=0.25), CacheBlend(share=0.25)]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_beyond_its_range_is_refused(share: float) -> None:
    with pytest.raises(SamKVError, match="between 0 and 1"):
        settings("samkv", [share])
