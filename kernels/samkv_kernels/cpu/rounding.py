"""Rounding to four bits: one reading for the extremes, one for the integers, and no copy of fp32 in rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import float32, int32, uint8
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.cpu.memory import in_rows, table
from samkv_kernels.cpu.threads import Shared, items_of, opened, parts_of, shared
from samkv_kernels.groups import GROUP, HALF, MOST

_EXTREMES = "float32[:,::1], int64, int64[::1], float32[:,:,::1], float32[:,:,::1]"
_CODES = f"{_EXTREMES}, uint8[:,:,:,::1]"
"""What the kernels take: a table of entries `(N, D)`, how many rows of it lie from head to head, which rows of a head
are rounded, and the rest."""
_FINITE = frozenset({"reassoc", "nsz", "nnan"})
_AS_WRITTEN = frozenset({"nsz"})


@shared(_EXTREMES, fastmath=_FINITE)
def _extremes_by_channel(job: Any) -> None:
    """The smallest and largest numbers of each channel among every 32 tokens `at` `(N,)`, into `low` and `high` `(G, B,
    D)`."""
    entries, per_head, at, low, high = opened(job, _EXTREMES)
    blocks, dim = low.shape[1:]
    for _, item in items_of(job):
        head, block = item // blocks, item % blocks
        least, most = low[head, block], high[head, block]
        least[:] = most[:] = entries[head * per_head + at[block * GROUP]]
        for place in range(block * GROUP + 1, min((block + 1) * GROUP, len(at))):
            own = entries[head * per_head + at[place]]
            for i in range(dim):
                least[i], most[i] = min(least[i], own[i]), max(most[i], own[i])


@shared(_EXTREMES, fastmath=_FINITE)
def _extremes_by_token(job: Any) -> None:
    """Those of each token, into `(G, B, 32)`."""
    entries, per_head, at, low, high = opened(job, _EXTREMES)
    blocks, dim = low.shape[1], entries.shape[1]
    for _, item in items_of(job):
        head, block = item // blocks, item % blocks
        for token in range(GROUP):
            own = entries[head * per_head + at[min(block * GROUP + token, len(at) - 1)]]
            least = most = own[0]
            for i in range(dim):
                least, most = min(least, own[i]), max(most, own[i])
            low[head, block, token], high[head, block, token] = least, most


@compiled(fastmath=_AS_WRITTEN)
def _byte(low: Any, high: Any) -> Any:
    """Two numbers, rounded to integers of four bits, in one byte, as `Rounded` holds them."""
    low, high = min(max(np.rint(low), float32(0)), float32(MOST)), min(max(np.rint(high), float32(0)), float32(MOST))
    return uint8((int32(low) | (int32(high) << 4)) ^ 0x88)


@shared(_CODES, fastmath=_AS_WRITTEN)
def _codes_by_channel(job: Any) -> None:
    """The integers of tokens `at` `(N,)`, the last repeated, into `out` `(G, B, 16, D)`, by `low` and `scale` `(G, B,
    D)`."""
    entries, per_head, at, low, scale, out = opened(job, _CODES)
    blocks, dim, last = out.shape[1], out.shape[3], len(at) - 1
    for _, item in items_of(job):
        head, block = item // blocks, item % blocks
        least, step = low[head, block], scale[head, block]
        for half in range(HALF):
            place, first = block * GROUP + half, head * per_head
            one, other = entries[first + at[min(place, last)]], entries[first + at[min(place + HALF, last)]]
            for i in range(dim):
                out[head, block, half, i] = _byte((one[i] - least[i]) / step[i], (other[i] - least[i]) / step[i])


@shared(_CODES, fastmath=_AS_WRITTEN)
def _codes_by_token(job: Any) -> None:
    """The same by `low` and `scale` `(G, B, 32)`."""
    entries, per_head, at, low, scale, out = opened(job, _CODES)
    blocks, dim, last = out.shape[1], out.shape[3], len(at) - 1
    for _, item in items_of(job):
        head, block = item // blocks, item % blocks
        least, step = low[head, block], scale[head, block]
        for half in range(HALF):
            place, first = block * GROUP + half, head * per_head
            one, other = entries[first + at[min(place, last)]], entries[first + at[min(place + HALF, last)]]
            a, b, c, d = least[half], step[half], least[half + HALF], step[half + HALF]
            for i in range(dim):
                out[head, block, half, i] = _byte((one[i] - a) / b, (other[i] - c) / d)


def extremes(entries: Tensor, at: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """The smallest and largest of finite fp32 `entries` `(G, T, D)` among every 32 tokens `at` `(N,)`: of each channel
    `(G, B, D)` (`along` -2), or of each token `(G, B, 32)` (-1)."""
    groups, _, dim = entries.shape
    low, high = entries.new_empty(2, groups, -(-len(at) // GROUP), GROUP if along == -1 else dim)
    _run(_extremes_by_token if along == -1 else _extremes_by_channel, entries, at, low, high)
    return low, high


def codes(entries: Tensor, at: Tensor, along: int, low: Tensor, scale: Tensor) -> Tensor:
    """The integers of the same by `low` and `scale`, so shaped: uint8 `(G, B, 16, D)`, as `Rounded` holds them."""
    out = torch.empty(*low.shape[:2], HALF, entries.shape[2], dtype=torch.uint8)
    _run(_codes_by_token if along == -1 else _codes_by_channel, entries, at, low, scale, out)
    return out


def _run(kernel: Shared, entries: Tensor, at: Tensor, *others: Tensor) -> None:
    """Run a kernel on every head's 32 tokens: those of a cache are rows of a table, with room after each head. Raises
    IndexError for a token that is not there: compiled loops do not look."""
    if not 0 <= int(at.min()) <= int(at.max()) < entries.shape[1]:
        raise IndexError(f"tokens {int(at.min())} to {int(at.max())} of {entries.shape[1]}")
    rows = entries if entries.stride(1) == entries.shape[2] and in_rows(entries) else entries.contiguous()
    items, numbers = others[0].shape[0] * others[0].shape[1], len(entries) * len(at) * entries.shape[2]
    per_head = rows.stride(0) // rows.shape[2]
    kernel(parts_of(items, numbers), items, table(rows), per_head, at.contiguous(), *(x.contiguous() for x in others))
