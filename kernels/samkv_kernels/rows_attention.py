"""Attention of rows that have a cache each, and a launch that puts a new token's entries where they belong.

Answers of unlike lengths lie in memory of their own. `Places` says where, so that what is done for all of them is one
launch: a step of 46 answers of an 8B model has 1,472 attentions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.offsets import apart, hint
from samkv_kernels.sending import sent
from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans, sparse_attention


@dataclass(frozen=True, slots=True)
class Places:
    """Where the caches of rows are, none of more than `longest` tokens.

    `table` int64 `(B, 4)`: how many elements keys and values begin behind `keys` and `values` `(1, G, T, D)`, which are
    some cache's that is like theirs, and how far their heads are apart; all multiples of `hint`. A launch that is
    recorded reads the table anew, but remembers everything else.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    hint: int
    longest: int

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Places:
        """Those of keys and values `(1, G, T_b, D)`, beside the first; see `place`."""
        lines = [place(*pair, keys[0], values[0]) for pair in zip(keys, values, strict=True)]
        table = sent(torch.tensor(lines), keys[0].device)
        return cls(keys[0], values[0], table, hint(chain.from_iterable(lines)), max(x.shape[2] for x in keys))


def place(keys: Tensor, values: Tensor, first_keys: Tensor, first_values: Tensor) -> list[int]:
    """One row of a table: where keys and values `(1, G, T, D)` are, beside the first ones. Raises ValueError where they
    are not alike but for their lengths."""
    kinds = {
        (x.dtype, x.device, x.shape[1], x.shape[3], *x.stride()[2:]) for x in (keys, values, first_keys, first_values)
    }
    if len(kinds) != 1 or keys.stride(3) != 1:
        raise ValueError("rows need caches of one dtype on one device, with the same heads and contiguous tokens")
    return [apart(keys, first_keys), apart(values, first_values), keys.stride(1), values.stride(1)]


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys and values `(1, G, T_b, D)` of every row, of any length, and their `places`, all that kernels go by."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    places: Places

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Caches:
        """With places made now."""
        return cls(keys, values, Places.of(keys, values))


def put_rows(caches: Caches, slots: Tensor, keys: Tensor, values: Tensor, backend: Backend = "torch") -> None:
    """Store new keys and values `(B, G, 1, D)`, one token of every row, at its slot of `slots` int64 `(B,)`."""
    if backend == "triton":
        from samkv_kernels.jit.rows_attention import put

        put(caches.places, slots, keys, values)
        return
    for row, (own_keys, own_values) in enumerate(zip(caches.keys, caches.values, strict=True)):
        slot, own = slots[row : row + 1], slice(row, row + 1)
        own_keys.index_copy_(2, slot, keys[own].to(own_keys.dtype))
        own_values.index_copy_(2, slot, values[own].to(own_values.dtype))


def rows_attention(
    query: Tensor, caches: Caches, spans: Spans, softmax: Softmax = PLAIN, backend: Backend = "torch"
) -> Tensor:
    """`sparse_attention` of every row over its own cache: `query` `(B, H, Q, D)`, `spans` `(B, Q)` -> like `query`."""
    if backend == "triton":
        from samkv_kernels.jit.sparse_attention import attend_apart

        return attend_apart(query, caches.places, spans, softmax)
    out = []
    for row, pair in enumerate(zip(caches.keys, caches.values, strict=True)):
        own = slice(row, row + 1)
        out.append(sparse_attention(query[own], *pair, Spans(spans.first[own], spans.last[own]), softmax))
    return torch.cat(out)
