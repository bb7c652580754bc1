"""Angles of whole prompts, kept for the next prompt: the same as new ones, and of few kinds."""

from __future__ import annotations

import pytest
import torch

from samkv_rag import SamKV
from tests.methods.gates import every_wiring, prompted


@every_wiring
@pytest.mark.parametrize("shown", [False, True])
def test_kept_angles_are_those_of_a_new_table(wiring: str, shown: bool) -> None:
    rotary = prompted(wiring).adapter.rotary
    layers = prompted(wiring).adapter.shape.stacks[0].layers
    for count in (40, 7, 90, 1):
        positions = torch.arange(count) + int(shown)  # those that begin at 1 are not kept
        got, want = rotary.turning(positions, positions)(layers), rotary.table(positions).angles(layers)
        assert torch.equal(got.cos, want.cos) and torch.equal(got.sin, want.sin)
        assert (got.table is None) == (want.table is None)
        assert got.table is None or torch.equal(got.table, want.table)


def test_layers_that_turn_alike_share_them() -> None:
    case = prompted("llama")
    for method in (SamKV(), SamKV(layers=(0,)), SamKV(layers=(2,)), SamKV(settle="before")):
        case.prepare(method)
    assert len(case.adapter.rotary._kept) == 1


@pytest.mark.parametrize("wiring", ["gemma3", "gemma4-unlike-heads"])
def test_few_are_kept_of_layers_that_turn_unlike(wiring: str) -> None:
    case = prompted(wiring)
    for layer in range(case.adapter.shape.layers):
        case.prepare(SamKV(layers=(layer,)))
    assert 1 <= len(case.adapter.rotary._kept) <= 2
