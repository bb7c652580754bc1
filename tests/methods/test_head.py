"""What a prompt begins with is known where another one has begun alike: it is kept, and not computed."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import cache

import pytest

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.accounting import make_report
from samkv_rag.methods import Prepared, Run
from samkv_rag.methods.layout import beginning
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import Beginnings
from samkv_rag.types import Question
from tests import oracles
from tests.cases import METHODS, WIRINGS
from tests.methods.gates import TOLERANCE, VISIBLE, distance, dropping, every_wiring, spoken
from tests.methods.test_leading import plan_of
from tests.model.recording import assert_same, recording
from tests.models import adapter
from tests.oracles import Prompted

GLUE = 20
"""Tokens before every chunk; those before the first one are the same for all plans here."""
ANOTHER = (9, 20)
"""Chunks of another prompt that begins alike."""
CHUNK, QUESTION = ("chunk", (1, 2)), ("glue", (9,))


@cache
def begun(wiring: str) -> Prompted:
    """A prompt for a model that has seen none before."""
    model, store = ModelAdapter(adapter(wiring).model), ChunkKVStore(":memory:")
    oracles.stored_plan(model, store, ANOTHER, GLUE)
    return Prompted(oracles.stored_plan(model, store, glue=GLUE), model, store)


def forget(case: Prompted) -> None:
    case.adapter.beginnings = Beginnings(case.adapter.shape)


def meet(case: Prompted) -> None:
    """Prepare another prompt, one that begins like the case's."""
    forget(case)
    plan = oracles.stored_plan(case.adapter, case.store, ANOTHER, GLUE)
    Reuse().prepare(Run(plan, case.adapter, case.store, oracles.ROOM))


def run_of(case: Prompted) -> Run:
    return Run(case.plan, case.adapter, case.store, oracles.ROOM)


def known_of(case: Prompted) -> int:
    return run_of(case).caches.ground.head


@every_wiring
@pytest.mark.parametrize(("wide", "sees"), [(1.0, 0.0), (0.0, 0.0), (0.25, 0.3)])
def test_the_answer_is_that_of_a_pass_that_computes_it(wiring: str, wide: float, sees: float) -> None:
    """Also where less is attended to: what is computed attends to the head on every layer."""
    case, method = begun(wiring), dropping(keep=0.4, wide=wide, sees=sees)
    forget(case)
    assert known_of(case) == 0
    computed = case.prepare(method)
    meet(case)
    assert known_of(case) == (0 if case.adapter.rotary.depends_on_length else GLUE)
    known = case.prepare(method)
    assert_same(known, computed)
    assert distance(spoken(case, known), spoken(case, computed)) < TOLERANCE


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_it_for_others_and_makes_of_it_what_it_makes_of_one_that_is_computed(name: str) -> None:
    case, method = begun("llama"), METHODS[name]
    forget(case)
    computed = case.prepare(method)
    assert known_of(case) == (0 if computed.cache is None else GLUE)
    want = case.logits(computed)
    known = case.prepare(method)
    assert_same(known, computed)
    assert distance(case.logits(known), want) < TOLERANCE


@pytest.mark.parametrize(
    "method", [dropping(keep=0.4), dropping(keep=0.4, wide=0.0, sees=0.0)], ids=["usual", "narrow"]
)
def test_passes_of_fixed_sizes_do_without_it_too(method: SamKV) -> None:
    case = begun("llama")
    meet(case)
    plain = case.prepare(method)
    with recording(case.adapter) as passes:
        for _ in range(3):
            assert_same(case.prepare(method), plain)
        assert passes.recordings


def test_where_everything_is_computed_it_is_too() -> None:
    """It is an ordinary prefill, in half precision, too: by the same operations."""
    case = begun("llama")
    meet(case)
    run = run_of(case)
    dropping(keep=1.0).prepare(run)
    whole, *_ = run.costs.passes
    assert len(whole.slots) == case.plan.n_tokens


OTHERS = ("samkv-drop", "samkv-paper", "samkv-before-third", "samkv-late", "multi_infllm", "random")
SHORT = [*((wiring, "samkv") for wiring in WIRINGS), *(("llama", name) for name in OTHERS)]


@pytest.mark.parametrize(("wiring", "name"), SHORT)
def test_a_prompt_too_short_for_less_than_all_of_its_chunks_does_without_it(wiring: str, name: str) -> None:
    """All of its chunk tokens are computed because of the engine's minimum: no method asked for it."""
    case, total = begun(wiring), begun(wiring).plan.chunk_tokens
    method = METHODS[name]

    def prepared(least: int) -> tuple[Prepared, Run]:
        run = Run(case.plan, case.adapter, case.store, oracles.ROOM, least)
        return method.prepare(run), run

    forget(case)
    computed, _ = prepared(total)
    meet(case)
    known, run = prepared(total)
    head = known_of(case)
    assert distance(spoken(case, known), spoken(case, computed)) < TOLERANCE
    report = make_report(run, known, name, 0.0)
    again = sum(map(len, known.selection.recomputed))
    assert report.head_tokens == head and report.fresh_tokens == case.plan.n_tokens - total - head + again
    assert (head > 0) is not case.adapter.rotary.depends_on_length
    _, fewer = prepared(total - 1)
    assert len(run.notes) == len(fewer.notes) == 1
    assert run.notes[0].startswith(f"{total} tokens were chosen, all (min_kept_tokens={total}): keep alone would be ")
    assert fewer.notes[0].startswith(f"{total - 1} tokens were chosen, the minimum (min_kept_tokens={total - 1}): ")


def test_what_stands_behind_it_in_the_other_prompt_is_not_seen() -> None:
    """Two prompts that diverge before the first chunk: only what they have in common is known."""
    case = begun("llama")
    forget(case)
    want = case.logits(case.prepare(Reuse()))
    first, *rest = case.plan.segments
    other = replace(first, token_ids=(*first.token_ids[:-3], 5, 6, 7))
    forget(case)
    Reuse().prepare(Run(replace(case.plan, segments=(other, *rest)), case.adapter, case.store, oracles.ROOM))
    assert known_of(case) == GLUE - 3
    assert distance(case.logits(case.prepare(Reuse())), want) < TOLERANCE


def test_another_head_would_be_visible() -> None:
    """Negative control: entries of other tokens in its place."""
    case = begun("llama")
    meet(case)
    want = case.logits(case.prepare(Reuse()))
    known = case.adapter.beginnings.head_of(beginning(case.plan))
    for one in known.entries:
        one.values.mul_(-1)
    assert distance(case.logits(case.prepare(Reuse())), want) > VISIBLE


def test_nothing_of_it_is_held_once_the_answer_has_begun() -> None:
    case = begun("llama")
    meet(case)
    run = run_of(case)
    entries = weakref.ref(case.adapter.beginnings.head_of(beginning(case.plan)).entries[0].keys)
    Reuse().prepare(run)
    run.release()
    forget(case)
    assert run.caches.ground.head == GLUE and entries() is None


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        ((("glue", (5, 6)), CHUNK, QUESTION), (5, 6)),
        ((("glue", (5, 6)), ("glue", (7,)), CHUNK, ("glue", (8,)), CHUNK, QUESTION), (5, 6, 7)),
        ((CHUNK, ("glue", (5, 6)), QUESTION), ()),
        ((("glue", (5, 6)), QUESTION), ()),
    ],
)
def test_a_prompt_begins_with_what_stands_in_front_of_its_chunks(
    parts: tuple[tuple[str, tuple[int, ...]], ...], want: tuple[int, ...]
) -> None:
    assert beginning(plan_of(*parts)) == want


def test_a_chunk_that_was_missed_is_none_of_it() -> None:
    """It will be a stored one in the next prompt."""
    plan = plan_of(("glue", (5, 6)), ("glue", (7, 8)), ("glue", (9,)), CHUNK, QUESTION)
    before, missed, *rest = plan.segments
    text = "A missed chunk."
    assert beginning(replace(plan, segments=(before, replace(missed, text=text), *rest), misses=(text,))) == (5, 6)


def test_a_question_that_stands_there_is_read() -> None:
    plan = plan_of(("glue", (5, 6, 7, 8)), CHUNK, QUESTION)
    asking = type(plan)(plan.segments, Question("", (7, 8), 2))
    assert beginning(asking) == (5, 6)
    apart = type(plan)(plan.segments, Question("", (7, 8), 2, in_prompt=False))
    assert beginning(apart) == (5, 6, 7, 8)
