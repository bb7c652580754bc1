"""Rounding to four bits: one reading for the extremes, one for the integers, and no copy of what is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import float32, int32, uint8
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled
from samkv_kernels.groups import GROUP, HALF, MOST

_TABLE, _PLACES, _CODES = "float32[:,::1]", "int64[::1]", "uint8[:,:,::1]"
_FINITE = frozenset({"reassoc", "nsz", "nnan"})
_AS_WRITTEN = frozenset({"nsz"})


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, fastmath=_FINITE)
def _extremes_by_channel(entries: Any, at: Any, low: Any, high: Any) -> None:
    """The smallest and largest numbers of each channel of `entries` `(T, D)` among every 32 tokens `at` `(N,)`, into
    `low` and `high` `(B, D)`."""
    for block in range(low.shape[0]):
        low[block] = high[block] = entries[at[block * GROUP]]
        for place in range(block * GROUP + 1, min((block + 1) * GROUP, len(at))):
            own = entries[at[place]]
            for i in range(len(own)):
                low[block, i], high[block, i] = min(low[block, i], own[i]), max(high[block, i], own[i])


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, fastmath=_FINITE)
def _extremes_by_token(entries: Any, at: Any, low: Any, high: Any) -> None:
    """Those of each token, into `(B, 32)`."""
    for block in range(low.shape[0]):
        for token in range(GROUP):
            own = entries[at[min(block * GROUP + token, len(at) - 1)]]
            least = most = own[0]
            for i in range(len(own)):
                least, most = min(least, own[i]), max(most, own[i])
            low[block, token], high[block, token] = least, most


@compiled(fastmath=_AS_WRITTEN)
def _byte(low: Any, high: Any) -> Any:
    """Two numbers, rounded to integers of four bits, in one byte, as `Rounded` holds them."""
    low, high = min(max(np.rint(low), float32(0)), float32(MOST)), min(max(np.rint(high), float32(0)), float32(MOST))
    return uint8((int32(low) | (int32(high) << 4)) ^ 0x88)


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, _CODES, fastmath=_AS_WRITTEN)
def _codes_by_channel(entries: Any, at: Any, low: Any, scale: Any, out: Any) -> None:
    """The integers of tokens `at` `(N,)`, the last repeated, into `out` `(B, 16, D)`, by `low` and `scale` `(B, D)`."""
    last = len(at) - 1
    for block in range(out.shape[0]):
        least, step = low[block], scale[block]
        for half in range(HALF):
            place = block * GROUP + half
            one, other = entries[at[min(place, last)]], entries[at[min(place + HALF, last)]]
            for i in range(out.shape[2]):
                out[block, half, i] = _byte((one[i] - least[i]) / step[i], (other[i] - least[i]) / step[i])


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, _CODES, fastmath=_AS_WRITTEN)
def _codes_by_token(entries: Any, at: Any, low: Any, scale: Any, out: Any) -> None:
    """The same by `low` and `scale` `(B, 32)`."""
    last = len(at) - 1
    for block in range(out.shape[0]):
        for half in range(HALF):
            place = block * GROUP + half
            one, other = entries[at[min(place, last)]], entries[at[min(place + HALF, last)]]
            least, more = low[block, half], low[block, half + HALF]
            step, stride = scale[block, half], scale[block, half + HALF]
            for i in range(out.shape[2]):
                out[block, half, i] = _byte((one[i] - least) / step, (other[i] - more) / stride)


def extremes(entries: Tensor, at: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """The smallest and largest of finite fp32 `entries` `(G, T, D)` among every 32 tokens `at` `(N,)`: of each channel
    `(G, B, D)` (`along` -2), or of each token `(G, B, 32)` (-1)."""
    groups, _, dim = entries.shape
    low, high = entries.new_empty(2, groups, -(-len(at) // GROUP), GROUP if along == -1 else dim)
    _each_head(_extremes_by_token if along == -1 else _extremes_by_channel, entries, at, low, high)
    return low, high


def codes(entries: Tensor, at: Tensor, along: int, low: Tensor, scale: Tensor) -> Tensor:
    """The integers of the same by `low` and `scale`, so shaped: uint8 `(G, B, 16, D)`, as `Rounded` holds them."""
    out = torch.empty(*low.shape[:2], HALF, entries.shape[2], dtype=torch.uint8)
    _each_head(_codes_by_token if along == -1 else _codes_by_channel, entries, at, low, scale, out)
    return out


def _each_head(kernel: Callable[..., None], entries: Tensor, at: Tensor, *others: Tensor) -> None:
    """Run a kernel for every head: those of a cache are contiguous one by one, with room after each."""
    places = at.contiguous().numpy()
    for head, *own in zip(entries, *others, strict=True):
        kernel(head.contiguous().numpy(), places, *(each.numpy() for each in own))
