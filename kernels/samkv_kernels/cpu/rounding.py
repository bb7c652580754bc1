"""Rounding to four bits: one reading for the extremes, one for the integers, and no copy of what is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import float32, int32, uint8
from torch import Tensor

from samkv_kernels.cpu.compiling import compiled

_HALF, _GROUP, _MOST = 16, 32, 15
_TABLE, _PLACES, _CODES = "float32[:,::1]", "int64[::1]", "uint8[:,:,::1]"
_FINITE = frozenset({"reassoc", "nsz", "nnan"})
_AS_WRITTEN = frozenset({"nsz"})


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, fastmath=_FINITE)
def _extremes_by_channel(entries: Any, at: Any, low: Any, high: Any) -> None:
    """The smallest and largest numbers of each channel of `entries` `(T, D)` among every 32 tokens `at` `(N,)`, into
    `low` and `high` `(B, D)`."""
    for block in range(low.shape[0]):
        low[block] = high[block] = entries[at[block * _GROUP]]
        for place in range(block * _GROUP + 1, min((block + 1) * _GROUP, len(at))):
            own = entries[at[place]]
            for i in range(len(own)):
                low[block, i], high[block, i] = min(low[block, i], own[i]), max(high[block, i], own[i])


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, fastmath=_FINITE)
def _extremes_by_token(entries: Any, at: Any, low: Any, high: Any) -> None:
    """Those of each token, into `(B, 32)`."""
    for block in range(low.shape[0]):
        for token in range(_GROUP):
            own = entries[at[min(block * _GROUP + token, len(at) - 1)]]
            least = most = own[0]
            for i in range(len(own)):
                least, most = min(least, own[i]), max(most, own[i])
            low[block, token], high[block, token] = least, most


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, _CODES, fastmath=_AS_WRITTEN)
def _codes_by_channel(entries: Any, at: Any, low: Any, scale: Any, out: Any) -> None:
    """The integers of tokens `at` `(N,)`, the last repeated, into `out` `(B, 16, D)`, by `low` and `scale` `(B, D)`."""
    last = len(at) - 1
    for block in range(out.shape[0]):
        least, step = low[block], scale[block]
        for half in range(_HALF):
            place = block * _GROUP + half
            one, other = entries[at[min(place, last)]], entries[at[min(place + _HALF, last)]]
            for i in range(out.shape[2]):
                a, b = np.rint((one[i] - least[i]) / step[i]), np.rint((other[i] - least[i]) / step[i])
                a, b = min(max(a, float32(0)), float32(_MOST)), min(max(b, float32(0)), float32(_MOST))
                out[block, half, i] = uint8((int32(a) | (int32(b) << 4)) ^ 0x88)


@compiled(_TABLE, _PLACES, _TABLE, _TABLE, _CODES, fastmath=_AS_WRITTEN)
def _codes_by_token(entries: Any, at: Any, low: Any, scale: Any, out: Any) -> None:
    """The same by `low` and `scale` `(B, 32)`."""
    last = len(at) - 1
    for block in range(out.shape[0]):
        for half in range(_HALF):
            place = block * _GROUP + half
            one, other = entries[at[min(place, last)]], entries[at[min(place + _HALF, last)]]
            least, more = low[block, half], low[block, half + _HALF]
            step, stride = scale[block, half], scale[block, half + _HALF]
            for i in range(out.shape[2]):
                a, b = np.rint((one[i] - least) / step), np.rint((other[i] - more) / stride)
                a, b = min(max(a, float32(0)), float32(_MOST)), min(max(b, float32(0)), float32(_MOST))
                out[block, half, i] = uint8((int32(a) | (int32(b) << 4)) ^ 0x88)


def extremes(entries: Tensor, at: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """The smallest and largest of finite fp32 `entries` `(G, T, D)` among every 32 tokens `at` `(N,)`: of each channel
    `(G, B, D)` (`along` -2), or of each token `(G, B, 32)` (-1)."""
    groups, _, dim = entries.shape
    low, high = entries.new_empty(2, groups, -(-len(at) // _GROUP), _GROUP if along == -1 else dim)
    kernel, places = _extremes_by_token if along == -1 else _extremes_by_channel, at.contiguous().numpy()
    for head, *into in zip(entries, low, high, strict=True):
        kernel(head.contiguous().numpy(), places, *(each.numpy() for each in into))
    return low, high


def codes(entries: Tensor, at: Tensor, along: int, low: Tensor, scale: Tensor) -> Tensor:
    """The integers of the same by `low` and `scale`, so shaped: uint8 `(G, B, 16, D)`, as `Rounded` holds them."""
    out = torch.empty(*low.shape[:2], _HALF, entries.shape[2], dtype=torch.uint8)
    kernel, places = _codes_by_token if along == -1 else _codes_by_channel, at.contiguous().numpy()
    for head, *others in zip(entries, low, scale, out, strict=True):
        kernel(head.contiguous().numpy(), places, *(each.numpy() for each in others))
    return out
