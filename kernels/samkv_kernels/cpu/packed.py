"""Products with numbers of four bits: 32 tokens of a head are unpacked into the nearest cache, and used there.

torch has an operation for each step, and writes what it has unpacked to memory before it multiplies it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import float32, int32
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.groups import GROUP, HALF

if TYPE_CHECKING:
    from samkv_kernels.packed import Rounded

_ROWS, _STEPS, _CODES = "float32[:,:,::1]", "float32[:,:,:,::1]", "int8[:,:,:,::1]"
"""Types of what a kernel takes: rows `(G, R, ...)`, the steps of `Rounded`, which in fp32 are divided by a `unit`, and
its codes."""


@compiled()
def _unpack(codes: Any, room: Any) -> None:
    """The integers less 8 of 32 tokens, times 16, from `(16, D)` bytes into `room` `(32, D)`."""
    for half in range(HALF):
        for at in range(codes.shape[1]):
            both = int32(codes[half, at])
            room[half, at] = float32(int32(both << 28) >> 24)
            room[half + HALF, at] = float32(both & -16)


@compiled()
def _scales(steps: Any, unit: Any, scale: Any, middle: Any) -> None:
    """What the integers of `_unpack` are multiplied by, and what is added to them: of `steps` `(2, X)` into `(X,)`
    each."""
    for i in range(steps.shape[1]):
        scale[i] = steps[0, i] * (unit / 16)
        middle[i] = steps[1, i] * unit + 128 * scale[i]


@compiled(_ROWS, _STEPS, "float32", _CODES, _ROWS)
def _scores(rows: Any, steps: Any, unit: Any, codes: Any, out: Any) -> None:
    """`rows` `(G, R, D)` times keys, into `out` `(G, R, 32 * B)`. Four tokens at a time: their sums are computed side
    by side."""
    groups, n_rows, dim = rows.shape
    room, scaled = np.empty((GROUP, dim), np.float32), np.empty(dim, np.float32)
    scale, middle = np.empty(dim, np.float32), np.empty(dim, np.float32)
    for group in range(groups):
        for block in range(codes.shape[1]):
            _unpack(codes[group, block], room)
            _scales(steps[group, block], unit, scale, middle)
            for row in range(n_rows):
                found = float32(0)
                for i in range(dim):
                    scaled[i] = rows[group, row, i] * scale[i]
                    found += rows[group, row, i] * middle[i]
                first = block * GROUP
                for at in range(0, GROUP, 4):
                    a = b = c = d = float32(0)
                    for i in range(dim):
                        a += scaled[i] * room[at, i]
                        b += scaled[i] * room[at + 1, i]
                        c += scaled[i] * room[at + 2, i]
                        d += scaled[i] * room[at + 3, i]
                    out[group, row, first + at] = found + a
                    out[group, row, first + at + 1] = found + b
                    out[group, row, first + at + 2] = found + c
                    out[group, row, first + at + 3] = found + d


@compiled(_ROWS, _STEPS, "float32", _CODES, _ROWS)
def _mixed(weights: Any, steps: Any, unit: Any, codes: Any, out: Any) -> None:
    """Values, weighted by `weights` `(G, R, N)` of the first N tokens and summed, into `out` `(G, R, D)`. Eight tokens
    at a time: their sum is written once."""
    groups, n_rows, count = weights.shape
    dim = codes.shape[3]
    room, sums, own = np.empty((GROUP, dim), np.float32), np.empty(dim, np.float32), np.zeros(GROUP, np.float32)
    scale, middle = np.empty(GROUP, np.float32), np.empty(GROUP, np.float32)
    for group in range(groups):
        out[group] = 0
        for block in range(codes.shape[1]):
            _unpack(codes[group, block], room)
            _scales(steps[group, block], unit, scale, middle)
            first = block * GROUP
            here = min(GROUP, count - first)
            own[here:] = 0
            for row in range(n_rows):
                found = float32(0)
                for at in range(here):
                    own[at] = weights[group, row, first + at] * scale[at]
                    found += weights[group, row, first + at] * middle[at]
                sums[:] = found
                for at in range(0, GROUP, 8):
                    a, b, c, d = own[at], own[at + 1], own[at + 2], own[at + 3]
                    e, f, g, h = own[at + 4], own[at + 5], own[at + 6], own[at + 7]
                    for i in range(dim):
                        some = a * room[at, i] + b * room[at + 1, i] + c * room[at + 2, i] + d * room[at + 3, i]
                        rest = e * room[at + 4, i] + f * room[at + 5, i] + g * room[at + 6, i] + h * room[at + 7, i]
                        sums[i] += some + rest
                for i in range(dim):
                    out[group, row, i] += sums[i]


@compiled(_STEPS, "float32", _CODES, "boolean", _ROWS)
def _entries(steps: Any, unit: Any, codes: Any, by_token: Any, out: Any) -> None:
    """What the integers stand for, into `out` `(G, 32 * B, D)`; `by_token`: each token has a scale of its own, not each
    channel."""
    width = steps.shape[3]
    scale, middle = np.empty(width, np.float32), np.empty(width, np.float32)
    for group in range(codes.shape[0]):
        for block in range(codes.shape[1]):
            own = out[group, block * GROUP : (block + 1) * GROUP]
            _unpack(codes[group, block], own)
            _scales(steps[group, block], unit, scale, middle)
            for at in range(GROUP):
                for i in range(codes.shape[3]):
                    shared = at if by_token else i
                    own[at, i] = own[at, i] * scale[shared] + middle[shared]


def entries(rounded: Rounded) -> Tensor:
    """What the integers stand for, fp32 `(G, 32 * B, D)`."""
    groups, blocks, _, dim = rounded.codes.shape
    out = torch.empty(groups, blocks * GROUP, dim)
    _entries(*_arrays(rounded), rounded.along == -1, out.numpy())
    return out


def scores(keys: Rounded, rows: Tensor) -> Tensor:
    """Products of fp32 `rows` `(G, R, D)` with every head's `keys`: `(G, R, 32 * B)`."""
    out = rows.new_empty(*rows.shape[:2], GROUP * keys.codes.shape[1])
    return _run(_scores, rows, keys, out)


def mixed(values: Rounded, weights: Tensor) -> Tensor:
    """Sums of every head's `values`, weighted by the fp32 `weights` `(G, R, N)` of the first N tokens: `(G, R, D)`."""
    out = weights.new_empty(*weights.shape[:2], values.codes.shape[3])
    return _run(_mixed, weights, values, out)


def _run(kernel: Callable[..., None], rows: Tensor, rounded: Rounded, out: Tensor) -> Tensor:
    """Run a kernel on one thread: torch's own keep the other processors busy, even while they wait."""
    kernel(rows.contiguous().numpy(), *_arrays(rounded), out.numpy())
    return out


def _arrays(rounded: Rounded) -> tuple[Any, float, Any]:
    return rounded.steps.float().numpy(), 2.0**rounded.exponent, rounded.codes.view(torch.int8).numpy()
