"""Observers get the same weights whether attending computes them or they are computed separately."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samkv_rag.methods import Run
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.narrowed import Narrow
from samkv_rag.model.observers import AttentionMaps, Observation
from samkv_rag.types import Selection
from tests import oracles
from tests.methods.gates import prompted, some_wirings


class Overheard(AttentionMaps):
    """Maps that also note on which layers attending had computed the weights."""

    def __init__(self, rows: Tensor, layers: range) -> None:
        super().__init__(rows, layers)
        self.ready: list[int] = []

    def __call__(self, seen: Observation) -> None:
        if seen.shares is not None:
            self.ready.append(seen.layer)
        super().__call__(seen)


def seen_in_a_narrowed_pass(wiring: str, asking: int) -> Overheard:
    """Watch a prompt's last `asking` tokens, beside every third chunk token; these attend to less from layer 2 on."""
    case = prompted(wiring)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    again = tuple(torch.arange(0, len(chunk.token_ids), 3) for chunk in case.plan.chunks)
    kept = Selection.all_of(case.plan).kept
    layout = run.caches.layout(kept)
    cache = run.caches.assemble(kept, layout)
    slots = run._fresh(layout, Selection(kept, again)).slots
    maps = Overheard(torch.arange(len(slots) - asking, len(slots)), range(4))
    ids = [layout.ids[slot] for slot in slots.tolist()]
    case.adapter.recompute(ids, slots, cache, observer=maps, narrow=Narrow(2, len(slots) - 5))
    return maps


@some_wirings
def test_weights_are_made_once_where_those_who_attend_together_are_watched(
    wiring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seen_in_a_narrowed_pass(wiring, 5)
    last = prompted(wiring).adapter.shape.layers - 1
    assert made.ready == [
        layer for layer in (2, 3) if layer < last
    ]  # below, most rows are not watched; the last layer is observed before it attends
    monkeypatch.setattr(AttentionPlan, "_room_for_shares", lambda *_: None)
    apart = seen_in_a_narrowed_pass(wiring, 5)
    assert apart.ready == [] and torch.allclose(made.found, apart.found, atol=1e-5)
    assert torch.allclose(made.found.sum(-1), torch.ones(()), atol=1e-5)


@some_wirings
def test_weights_of_few_rows_are_made_apart(wiring: str) -> None:
    assert seen_in_a_narrowed_pass(wiring, 2).ready == []


def test_rows_that_attend_to_less_cannot_be_watched() -> None:
    with pytest.raises(IndexError):
        seen_in_a_narrowed_pass("llama", 6)
