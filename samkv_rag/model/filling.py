"""Making room for a cache, and filling it from the store: what stands where, gathered and turned to its position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rope_gather import Angles, Stored, rope_gather_into
from samkv_rag.model.cache import Buffers
from samkv_rag.model.shape import Cut


@dataclass(frozen=True, slots=True)
class Part:
    """Stored tokens that come to stand in neighbouring slots, from slot `start` on: of every one its row among the
    `stored` ones (int `(T,)`; -1: none, zeros), which are one for each stack that has layers of the cache."""

    start: int
    stored: Sequence[Stored]
    rows: Tensor


def room_for(cuts: Iterable[Cut], slots: int, below: int, dtype: torch.dtype, device: torch.device) -> list[Buffers]:
    """Buffers of so many `slots` for the layers of every cut, with anything in them, in a cache that has all of the
    model's layers but those `below`."""
    out = []
    for cut in cuts:
        shape = (len(cut.layers), cut.stack.kv_heads, slots, cut.stack.head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        out.append(Buffers(keys, values, tuple(layer - below for layer in cut.layers)))
    return out


def fill(
    stacks: Sequence[Buffers], parts: Iterable[Part], slots: int, turns: Sequence[Angles], backend: Backend
) -> None:
    """Fill the first `slots` of every stack by `parts`, keys turned as `turns` has it for the stack; what none of them
    holds is zeros."""
    device, end = stacks[0].keys.device, 0
    for part in parts:
        begin, end, rows = end, part.start + len(part.rows), part.rows.to(device)
        for stack, stored, angles in zip(stacks, part.stored, turns, strict=True):
            stack.slots(begin, part.start).clear()
            here, angles = stack.slots(part.start, end), angles.slots(part.start, end)
            rope_gather_into(*here.both, stored.to(device), rows, angles, backend)
    for stack in stacks:
        stack.slots(end, slots).clear()
