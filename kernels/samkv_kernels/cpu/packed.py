"""Products with numbers of four bits: 32 tokens of a head are unpacked into the nearest cache, and used there.

torch has an operation for each step, and writes what it has unpacked to memory before it multiplies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import float32, int32
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.cpu.threads import items_of, opened, parts_of, shared
from samkv_kernels.groups import GROUP, HALF

if TYPE_CHECKING:
    from samkv_kernels.packed import Rounded

_SCORES = "float32[:,:,::1], float32[:,:,:,::1], int64, int8[:,:,:,::1], float32[:,:,::1]"
_MIXED = "float32[:,:,::1], float32[:,:,:,::1], int64, int8[:,:,:,::1], float32[:,:,:,::1]"
_ENTRIES = "float32[:,:,:,::1], int64, int8[:,:,:,::1], int64, float32[:,:,::1]"
"""What the kernels take: rows `(G, R, ...)`, the steps of `Rounded` in fp32, their exponent, its codes, and room for
what is found."""


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


@shared(_SCORES)
def _scores(job: Any) -> None:
    """`rows` `(G, R, D)` times keys, into `out` `(G, R, 32 * B)`, block by block. Four tokens at a time: their sums are
    computed side by side."""
    rows, steps, exponent, codes, out = opened(job, _SCORES)
    n_rows, dim, blocks, unit = rows.shape[1], rows.shape[2], codes.shape[1], float32(2.0**exponent)
    room, scaled = np.empty((GROUP, dim), np.float32), np.empty(dim, np.float32)
    scale, middle = np.empty(dim, np.float32), np.empty(dim, np.float32)
    for _, item in items_of(job):
        group, block = item // blocks, item % blocks
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


@shared(_MIXED)
def _mixed(job: Any) -> None:
    """Values, weighted by `weights` `(G, R, N)` of the first N tokens and summed: every part adds its sums to
    `out[part]` `(G, R, D)`. Eight tokens at a time: their sum is written once."""
    weights, steps, exponent, codes, out = opened(job, _MIXED)
    n_rows, count, unit = weights.shape[1], weights.shape[2], float32(2.0**exponent)
    blocks, dim = codes.shape[1], codes.shape[3]
    room, sums, own = np.empty((GROUP, dim), np.float32), np.empty(dim, np.float32), np.zeros(GROUP, np.float32)
    scale, middle = np.empty(GROUP, np.float32), np.empty(GROUP, np.float32)
    for part, item in items_of(job):
        group, block = item // blocks, item % blocks
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
                out[part, group, row, i] += sums[i]


@shared(_ENTRIES)
def _entries(job: Any) -> None:
    """What the integers stand for, into `out` `(G, 32 * B, D)`; `by_token`: each token has a scale of its own, not each
    channel."""
    steps, exponent, codes, by_token, out = opened(job, _ENTRIES)
    blocks, width, unit = codes.shape[1], steps.shape[3], float32(2.0**exponent)
    scale, middle = np.empty(width, np.float32), np.empty(width, np.float32)
    for _, item in items_of(job):
        group, block = item // blocks, item % blocks
        own = out[group, block * GROUP : (block + 1) * GROUP]
        _unpack(codes[group, block], own)
        _scales(steps[group, block], unit, scale, middle)
        for at in range(GROUP):
            for i in range(codes.shape[3]):
                which = at if by_token else i
                own[at, i] = own[at, i] * scale[which] + middle[which]


def entries(rounded: Rounded) -> Tensor:
    """What the integers stand for, fp32 `(G, 32 * B, D)`."""
    groups, blocks, _, dim = rounded.codes.shape
    out = torch.empty(groups, blocks * GROUP, dim)
    _entries(_parts(rounded), groups * blocks, *_numbers(rounded), rounded.along == -1, out)
    return out


def scores(keys: Rounded, rows: Tensor) -> Tensor:
    """Products of fp32 `rows` `(G, R, D)` with every head's `keys`: `(G, R, 32 * B)`."""
    groups, blocks, _, dim = keys.codes.shape
    if (rows.shape[0], rows.shape[2]) != (groups, dim):
        raise ValueError(f"rows {tuple(rows.shape)} do not fit {groups} heads of {dim}")
    out = rows.new_empty(*rows.shape[:2], GROUP * blocks)
    _scores(_parts(keys), groups * blocks, rows.contiguous(), *_numbers(keys), out)
    return out


def mixed(values: Rounded, weights: Tensor) -> Tensor:
    """Sums of every head's `values`, weighted by the fp32 `weights` `(G, R, N)` of the first N tokens: `(G, R, D)`."""
    (groups, blocks, _, dim), parts = values.codes.shape, _parts(values)
    if weights.shape[0] != groups or not 0 <= blocks * GROUP - weights.shape[2] < GROUP:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit {groups} heads of {blocks} times {GROUP} tokens")
    out = weights.new_zeros(parts, *weights.shape[:2], dim)
    _mixed(parts, groups * blocks, weights.contiguous(), *_numbers(values), out)
    return out[0] if parts == 1 else out.sum(0)


def _parts(rounded: Rounded) -> int:
    groups, blocks = rounded.codes.shape[:2]
    return parts_of(groups * blocks, 2 * rounded.codes.numel())


def _numbers(rounded: Rounded) -> tuple[Tensor, int, Tensor]:
    return rounded.steps.float(), rounded.exponent, rounded.codes
