"""Filling a cache from the store: what stands where, gathered and turned to its position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rope_gather import Angles, Stored, rope_gather_into


@dataclass(frozen=True, slots=True)
class Part:
    """Stored tokens that come to stand in neighbouring slots, from slot `start` on: of every one its row among the
    `stored` ones (int `(T,)`; -1: none, zeros)."""

    start: int
    stored: Stored
    rows: Tensor


def fill(keys: Tensor, values: Tensor, parts: Iterable[Part], slots: int, angles: Angles, backend: Backend) -> None:
    """Fill the first `slots` of `keys` and `values` `(L, G, T, D)` by `parts`, keys turned by `angles`; what none of
    them holds is zeros."""
    device, end = keys.device, 0
    for part in parts:
        _clear(keys, values, end, part.start)
        end = part.start + len(part.rows)
        rope_gather_into(
            keys[:, :, part.start : end], values[:, :, part.start : end], part.stored.to(device),
            part.rows.to(device), angles.slots(part.start, end), backend,
        )  # fmt: skip
    _clear(keys, values, end, slots)


def _clear(keys: Tensor, values: Tensor, start: int, stop: int) -> None:
    """Zeros in the slots from `start` to `stop`, if there are any."""
    if start < stop:
        keys[:, :, start:stop], values[:, :, start:stop] = 0, 0
