"""The function by which a model turns queries and keys, as it is found in the model's own code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from samkv_rag.errors import UnsupportedModel

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Turns queries or keys `(B, H, T, W)` by cos and sin `(1, T, W)`."""


def rotation_of(decoder: Any) -> tuple[Turn, bool]:
    """The model's own function, which knows half or interleaved layout, and whether the model's tables have every angle
    once (GPT-OSS, DeepSeek-V2), not for both dimensions of a pair. What is returned takes them twice in any case.
    Raises `UnsupportedModel`."""
    code = sys.modules[type(decoder).__module__]
    function: Any = getattr(code, "apply_rotary_pos_emb", None)
    one, table = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 4)
    with suppress(TypeError):
        try:
            function(one, one, table, table)
        except RuntimeError:  # sizes do not match
            return lambda x, cos, sin: function(x[:0], x, _once(cos), _once(sin))[1], True
        return lambda x, cos, sin: function(x[:0], x, cos, sin)[1], False
    with suppress(TypeError):  # it turns one tensor at a time (Gemma 4)
        if getattr(function(one, table, table), "shape", None) == one.shape:
            return function, False
    multiply: Any = getattr(code, "apply_rotary_emb", None)
    with suppress(TypeError, RuntimeError):  # it multiplies with complex numbers (DeepSeek-V2)
        if multiply(one, one, torch.ones(1, 1, 2, dtype=torch.complex64))[1].shape == one.shape:
            return lambda x, cos, sin: multiply(x[:, :1], x, torch.complex(_once(cos), _once(sin)))[1], True
    apart: Any = getattr(code, "apply_rotary_pos_emb_interleave", None)
    with suppress(TypeError, RuntimeError):  # it turns neighbours and puts them half a head apart (LongCat-Flash)
        if apart(one, one, table, table)[1].shape == one.shape:
            return lambda x, cos, sin: apart(x[:0], _neighbours(x), cos, sin)[1], False
    raise UnsupportedModel(
        f"{type(decoder).__name__} has no apply_rotary_pos_emb for queries and keys, so its keys cannot be turned "
        "exactly. Use another model, or call it through transformers directly."
    )


def _once(table: Tensor) -> Tensor:
    """Every angle once, of a table that has them twice."""
    return table.chunk(2, -1)[0]


def _neighbours(x: Tensor) -> Tensor:
    """What lies half of a head apart, side by side."""
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


def turns_neighbours(turn: Turn, name: str) -> bool:
    """True if a model turns pairs (2 i, 2 i + 1), False if (i, i + W / 2): where the first of four dimensions goes."""
    one = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 1, 4)
    turned = turn(one, torch.full((1, 1, 4), 0.6), torch.full((1, 1, 4), 0.8)).flatten().abs()
    for partner, neighbours in ((1, True), (2, False)):
        expected = torch.zeros(4).index_fill(0, torch.tensor([partner]), 0.8)
        expected[0] = 0.6
        if torch.allclose(turned, expected):
            return neighbours
    raise UnsupportedModel(f"{name} turns its keys in pairs we do not know; use a model with plain rotary attention.")
