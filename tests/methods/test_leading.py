"""A first chunk stored as the prompt would compute it is not recomputed, and everything attends to it all the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from samkv_rag import ChunkKVStore, SamKV
from samkv_rag.methods import Run
from samkv_rag.methods.leading import computed_and_stored, exact_tokens
from samkv_rag.methods.picked import Picked
from samkv_rag.types import PromptPlan, Question, Segment
from tests import oracles
from tests.methods.gates import (
    TOLERANCE,
    VISIBLE,
    distance,
    dropping,
    every_wiring,
    plain_logits,
    prompted,
    settled_logits,
    spoken,
)  # fmt: skip
from tests.models import adapter
from tests.oracles import Prompted

PREFIX = (5, 6, 7)


@cache
def beginning(wiring: str, lengths: tuple[int, ...] = (37, 16, 30, 5)) -> Prompted:
    """A prompt that begins with a chunk: nothing precedes it, nor did at ingestion."""
    store = ChunkKVStore(":memory:")
    return Prompted(oracles.stored_plan(adapter(wiring), store, lengths, glue=0), adapter(wiring), store)


def settled_with(case: Prompted, method: SamKV, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Picked | None]:
    """What `method` makes of the prompt, and what its recompute also attended to."""
    heard, original = list[Any](), Run.recompute_and_settle

    def spy(run: Run, *asked: Any) -> Any:
        heard.append(asked[-1])
        return original(run, *asked)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "recompute_and_settle", spy)
        prepared = case.prepare(method)
    return prepared, heard[0]


@every_wiring
def test_a_prompt_of_one_such_chunk_says_what_full_prefill_says_though_nothing_of_it_is_computed_again(
    wiring: str,
) -> None:
    case = beginning(wiring, (61,))
    prepared = case.prepare(dropping(keep=0.3))
    if case.adapter.rotary.depends_on_length:
        assert prepared.selection.recomputed[0].numel()
        return
    assert not prepared.selection.recomputed[0].numel()
    assert distance(case.logits(prepared), plain_logits(wiring, case.plan)) < TOLERANCE


@every_wiring
@pytest.mark.parametrize(("wide", "sees"), [(1.0, 0.0), (0.5, 0.0), (0.5, 0.4), (0.0, 0.0), (0.0, 1.0)])
def test_what_is_computed_sees_the_best_of_it_on_every_layer(
    wiring: str, wide: float, sees: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = beginning(wiring)
    prepared, also = settled_with(case, dropping(keep=0.4, wide=wide, sees=sees), monkeypatch)
    total, first = case.plan.chunk_tokens, len(case.plan.chunks[0].token_ids)
    count = int(0.4 * total)
    if case.adapter.rotary.depends_on_length:
        assert also is None
        return
    assert also is not None
    assert also.count == count * first // total == int(also.marks[:first].sum()) == int(also.marks.sum())
    assert not prepared.selection.recomputed[0].numel()
    assert sum(map(len, prepared.selection.recomputed)) == count - also.count
    where = {"narrow": int(wide * case.adapter.shape.layers), "sees": sees}
    want = settled_logits(wiring, case, prepared, also=also.at.tolist(), **where)
    assert distance(spoken(case, prepared), want) < TOLERANCE


def test_it_would_matter_if_what_is_computed_did_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = beginning("llama")
    prepared, _ = settled_with(case, dropping(keep=0.4, wide=0, sees=0), monkeypatch)
    assert distance(spoken(case, prepared), settled_logits("llama", case, prepared, narrow=0, sees=0.0)) > TOLERANCE


def test_a_first_chunk_behind_something_else_is_computed_again() -> None:
    """The control: its entries are not those of full prefill."""
    case = prompted("llama", (61,))
    assert case.prepare(dropping(keep=0.3)).selection.recomputed[0].numel() == int(0.3 * 61)
    unseen = case.prepare(dropping(keep=0.3, recompute=0.0))
    assert distance(case.logits(unseen), plain_logits("llama", case.plan)) > VISIBLE


def test_the_paper_computes_it_again() -> None:
    assert beginning("llama").prepare(SamKV.paper(0.5)).selection.recomputed[0].numel()


def plan_of(*parts: tuple[str, tuple[int, ...]]) -> PromptPlan:
    segments = list[Segment]()
    for kind, ids in parts:
        start = segments[-1].stop if segments else 0
        segments.append(Segment(kind, "", ids, start, "key" if kind == "chunk" else None))  # type: ignore[arg-type]
    return PromptPlan(tuple(segments), Question("", segments[-1].token_ids, segments[-1].start))


@pytest.mark.parametrize(
    ("parts", "prefix", "exact"),
    [
        ((("glue", PREFIX), ("chunk", (1, 2)), ("chunk", (3,)), ("glue", (9,))), PREFIX, 2),
        ((("glue", PREFIX[:2]), ("glue", PREFIX[2:]), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 2),
        ((("chunk", (1, 2)), ("chunk", (3,)), ("glue", (9,))), (), 2),
        ((("chunk", (1, 2)), ("glue", (9,))), PREFIX, 0),
        ((("glue", PREFIX), ("chunk", (1, 2)), ("glue", (9,))), (), 0),
        ((("glue", (*PREFIX, 8)), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 0),
        ((("glue", (8, *PREFIX)), ("chunk", (1, 2)), ("glue", (9,))), PREFIX, 0),
        ((("glue", PREFIX),), PREFIX, 0),
    ],
)
def test_only_behind_what_it_was_ingested_behind_is_a_first_chunk_exact(
    parts: tuple[tuple[str, tuple[int, ...]], ...], prefix: tuple[int, ...], exact: int
) -> None:
    assert exact_tokens(plan_of(*parts), prefix) == exact


def test_what_was_picked_for_other_reasons_goes_before_what_has_the_best_value() -> None:
    case = beginning("llama", (40, 60))
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    value, marks = torch.linspace(0, 1, 100), torch.zeros(100, dtype=torch.bool)
    marks[[0, 1, 2, 3, 4, 40, 41, 42, 43, 44]] = True
    computed, also = computed_and_stored(run, Picked(marks, 10), value)
    assert computed.at.tolist() == [40, 41, 42, 43, 44, 99]
    assert also is not None and also.at.tolist() == [1, 2, 3, 4]
