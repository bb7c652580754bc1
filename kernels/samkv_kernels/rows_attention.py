"""Attention of rows that each have a cache of their own, and a launch that puts a new token's entries into each.

Answers of different lengths have memory of their own. `Places` says where, so that what is done for all of them is one
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
from samkv_kernels.packed import Packed, packed_attention
from samkv_kernels.sending import sent
from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans, sparse_attention


@dataclass(frozen=True, slots=True)
class Places:
    """Where the caches of rows are, none of more than `longest` tokens.

    `table` int64 `(B, 4)`: how many elements after `keys` and `values` `(1, G, T, D)`, those of some cache like theirs,
    each row's keys and values begin, and how far apart their heads are; all multiples of `hint`. A recorded launch
    reads the table anew, but remembers everything else.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    hint: int
    longest: int

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Places:
        """The places of keys and values `(1, G, T_b, D)`, relative to the first; see `place`."""
        lines = [place(*pair, keys[0], values[0]) for pair in zip(keys, values, strict=True)]
        table = sent(torch.tensor(lines), keys[0].device)
        return cls(keys[0], values[0], table, hint(chain.from_iterable(lines)), max(x.shape[2] for x in keys))


def place(keys: Tensor, values: Tensor, first_keys: Tensor, first_values: Tensor) -> list[int]:
    """One row of a table: where keys and values `(1, G, T, D)` are, relative to the first ones. Raises ValueError if
    they differ in more than their lengths."""
    kinds = {
        (x.dtype, x.device, x.shape[1], x.shape[3], *x.stride()[2:]) for x in (keys, values, first_keys, first_values)
    }
    if len(kinds) != 1 or keys.stride(3) != 1:
        raise ValueError("rows need caches of one dtype on one device, with the same heads and contiguous tokens")
    return [apart(keys, first_keys), apart(values, first_values), keys.stride(1), values.stride(1)]


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys and values `(1, G, T_b, D)` of every row, of any length, and their `places`, all that kernels use."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    places: Places

    @classmethod
    def of(cls, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Caches:
        """Caches of these keys and values; computes their places."""
        return cls(keys, values, Places.of(keys, values))


@dataclass(frozen=True, slots=True)
class PackedPlaces:
    """Where packed entries of rows are, none of more than `longest` tokens.

    `table` int64 `(B, 8)`, see `packed_place`; a row of zeros has none. It counts from `codes` and `steps`, which may
    be any row's. A recorded launch reads the table anew, but remembers everything else.
    """

    codes: Tensor
    steps: Tensor
    table: Tensor
    hint: int
    longest: int


def packed_place(packed: Packed, codes: Tensor, steps: Tensor) -> list[int]:
    """One row of a table: how many elements after `codes` the keys' and the values' codes begin, how many after `steps`
    their steps, the number of tokens, the exponents of keys and values. The first four are multiples of `hint`."""
    both = packed.keys, packed.values
    begin = [apart(x.codes, codes) for x in both] + [apart(x.steps, steps) for x in both]
    return [*begin, packed.count, *(x.exponent for x in both), 0]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """What rows attend to besides their caches: `layers` by row, their `places`, all that kernels use, and the `spans`
    `(B, Q)` of it that queries attend to."""

    layers: Sequence[Packed | None]
    places: PackedPlaces
    spans: Spans

    @classmethod
    def of(cls, layers: Sequence[Packed | None], spans: Spans) -> PackedRows:
        """Rows with these layers, at least one of them not None; computes their places."""
        there = [layer for layer in layers if layer is not None]
        codes, steps = there[0].keys.codes, there[0].keys.steps
        lines = [[0] * 8 if layer is None else packed_place(layer, codes, steps) for layer in layers]
        table = sent(torch.tensor(lines), codes.device)
        common, longest = hint(chain.from_iterable(line[:4] for line in lines)), max(layer.count for layer in there)
        return cls(layers, PackedPlaces(codes, steps, table, common, longest), spans)


def put_rows(caches: Caches, slots: Tensor, keys: Tensor, values: Tensor, backend: Backend = "torch") -> None:
    """Store new keys and values `(B, G, 1, D)`, one token per row, each at its slot in `slots` int64 `(B,)`."""
    if backend == "triton":
        from samkv_kernels.jit.rows_attention import put

        put(caches.places, slots, keys, values)
        return
    for row, (own_keys, own_values) in enumerate(zip(caches.keys, caches.values, strict=True)):
        slot, own = slots[row : row + 1], slice(row, row + 1)
        own_keys.index_copy_(2, slot, keys[own].to(own_keys.dtype))
        own_values.index_copy_(2, slot, values[own].to(own_values.dtype))


def rows_attention(
    query: Tensor, caches: Caches, spans: Spans, softmax: Softmax = PLAIN, backend: Backend = "torch",
    packed: PackedRows | None = None,
) -> Tensor:  # fmt: skip
    """`sparse_attention` of every row over its own cache and what it has `packed`: `query` `(B, H, Q, D)`, `spans`
    `(B, Q)` -> like `query`."""
    if backend == "triton":
        return _launched(query, caches.places, spans, softmax, packed)
    out = []
    for row, (key, value) in enumerate(zip(caches.keys, caches.values, strict=True)):
        asked, seen = query[row : row + 1], _of_row(spans, row)
        layer = None if packed is None else packed.layers[row]
        if packed is None or layer is None:
            out.append(sparse_attention(asked, key, value, seen, softmax))
            continue
        also = _of_row(packed.spans, row).mask(layer.count)[0]
        out.append(packed_attention(asked, key, value, layer, seen.mask(key.shape[2])[0], also, softmax, backend))
    return torch.cat(out)


def _of_row(spans: Spans, row: int) -> Spans:
    return Spans(spans.first[row : row + 1], spans.last[row : row + 1])


def _launched(query: Tensor, places: Places, spans: Spans, softmax: Softmax, packed: PackedRows | None) -> Tensor:
    if packed is None:
        from samkv_kernels.jit.sparse_attention import attend_apart

        return attend_apart(query, places, spans, softmax)
    from samkv_kernels.jit.packed_attention import attend_beside

    return attend_beside(query, places, spans, softmax, packed)
