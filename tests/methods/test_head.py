"""What a prompt begins with is known where chunks are ingested behind it: it is kept, and not computed."""

from __future__ import annotations

from functools import cache

import pytest

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.methods import Run, assembly
from samkv_rag.methods.layout import head_tokens
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.types import Question
from tests import oracles
from tests.cases import METHODS
from tests.methods.gates import TOLERANCE, VISIBLE, distance, every_wiring, spoken
from tests.methods.test_leading import PREFIX, plan_of
from tests.model.recording import assert_same, recording
from tests.models import adapter
from tests.oracles import Prompted

HEAD = oracles.random_ids(3, 1)
"""What prompts of `stored_plan` begin with."""


@cache
def begun(wiring: str) -> Prompted:
    """A prompt that begins with what its chunks are ingested behind."""
    model, store = ModelAdapter(adapter(wiring).model, HEAD), ChunkKVStore(":memory:")
    return Prompted(oracles.stored_plan(model, store), model, store)


def run_of(case: Prompted) -> Run:
    return Run(case.plan, case.adapter, case.store, oracles.ROOM)


@every_wiring
@pytest.mark.parametrize(("wide", "sees"), [(1.0, 0.0), (0.0, 0.0), (0.25, 0.3)])
def test_the_answer_is_that_of_a_pass_that_computes_it(
    wiring: str, wide: float, sees: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where less is in sight: what is computed sees it on every layer."""
    case, method = begun(wiring), SamKV(keep=0.4, wide=wide, sees=sees)
    known = case.prepare(method)
    assert run_of(case).caches.ground.head == (0 if case.adapter.rotary.depends_on_length else len(HEAD))
    monkeypatch.setattr(assembly, "head_tokens", lambda *_: 0)
    computed = case.prepare(method)
    assert_same(known, computed)
    assert distance(spoken(case, known), spoken(case, computed)) < TOLERANCE


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_of_it_what_it_makes_of_a_head_that_is_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = begun("llama")
    known = case.prepare(METHODS[name])
    monkeypatch.setattr(assembly, "head_tokens", lambda *_: 0)
    computed = case.prepare(METHODS[name])
    assert_same(known, computed)
    assert distance(case.logits(known), case.logits(computed)) < TOLERANCE


@pytest.mark.parametrize("method", [SamKV(keep=0.4), SamKV(keep=0.4, wide=0.0, sees=0.0)], ids=["usual", "narrow"])
def test_passes_of_fixed_sizes_do_without_it_too(method: SamKV) -> None:
    case = begun("llama")
    plain = case.prepare(method)
    with recording(case.adapter) as passes:
        for _ in range(3):
            assert_same(case.prepare(method), plain)
        assert passes.recordings


def test_where_everything_is_computed_the_head_is_too() -> None:
    """An ordinary prefill, in half precision, too: by the same operations."""
    case = begun("llama")
    run = run_of(case)
    SamKV(keep=1.0).prepare(run)
    whole, *_ = run.costs.passes
    assert len(whole.slots) == case.plan.n_tokens


def test_another_head_would_be_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: entries of other tokens in its place."""
    case = begun("llama")
    want = case.logits(case.prepare(Reuse()))
    other = ModelAdapter(adapter("llama").model, oracles.random_ids(3, 2)).head
    monkeypatch.setitem(vars(case.adapter), "head", other)
    assert distance(case.logits(case.prepare(Reuse())), want) > VISIBLE


@pytest.mark.parametrize(
    ("parts", "prefix", "known"),
    [
        ((("glue", PREFIX), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 3),
        ((("glue", (*PREFIX, 8)), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 3),
        ((("glue", PREFIX), ("glue", (4, 4)), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 3),
        ((("chunk", (1, 2)), ("glue", (9,))), (), 0),
        ((("chunk", (*PREFIX, 2)), ("glue", (9,))), PREFIX, 0),
        ((("chunk", (1, 2)), ("glue", PREFIX), ("glue", (9,))), PREFIX, 0),
        ((("glue", (8, *PREFIX)), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 0),
        ((("glue", PREFIX), ("glue", (9,))), PREFIX, 0),
    ],
)
def test_a_prompt_begins_with_all_of_it_or_it_is_glue(
    parts: tuple[tuple[str, tuple[int, ...]], ...], prefix: tuple[int, ...], known: int
) -> None:
    assert head_tokens(plan_of(*parts), prefix) == known


def test_a_question_that_stands_in_it_is_read() -> None:
    plan = plan_of(("glue", PREFIX), ("chunk", (1, 2)), ("glue", (9,)))
    asking = type(plan)(plan.segments, Question("", PREFIX[1:], 1))
    assert head_tokens(asking, PREFIX) == 0
