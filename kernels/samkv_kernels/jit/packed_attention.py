"""Attention over keys and values packed into four bits, as parts of an attention over these and unpacked ones.

Numbers are turned into what they stand for where they are multiplied: this reads a third of what 16 bits take.
`combine_kernel` joins these parts with those of the unpacked entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import on_device, power_of_2
from samkv_kernels.jit.sparse_attention import (
    UNSEEN,
    flat,
    joined,
    launch,
    parts_of,
    rows_contiguous,
    sizes,
    splits,
    tile_rows,
    tile_scores,
    tile_span,
    weighed,
)

if TYPE_CHECKING:
    from samkv_kernels.rows_attention import PackedRows, Places
    from samkv_kernels.softmax import Softmax
    from samkv_kernels.sparse_attention import Spans


@triton.jit
def _numbers(codes, line, there, DIM: tl.constexpr, WIDE: tl.constexpr):
    # The numbers of BLOCKS blocks: (BLOCKS, 16, WIDE), those of both halves in every byte, their highest bits flipped.
    half = line[:, None] * 16 + tl.arange(0, 16)[None, :]
    at = tl.arange(0, WIDE)[None, None, :]
    return tl.load(codes + half[:, :, None] * DIM + at, mask=there[:, None, None] & (at < DIM), other=0)


@triton.jit
def _stand_for(numbers, scale, low, LINES: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr):
    entries = numbers.to(tl.float32) * scale + low
    if tl.float16 == DOT:  # the highest number may stand for a little more than what was rounded to it
        entries = tl.minimum(tl.maximum(entries, -65504.0), 65504.0)
    return tl.reshape(entries.to(DOT), (LINES, WIDE))


@triton.jit(do_not_specialize=["n_query"])
def attend_packed_kernel(
    query, codes, steps, out, levels, first, last, places, n_query, span_stride, scale, cap, q_strides,
    GROUPS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, DOT: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    # Each program along the third axis takes a part of the blocks. A place is 8 numbers: where keys and values begin,
    # in codes and in steps, how many tokens there are, and the exponents of keys and values.
    batch = (tl.program_id(1) // GROUPS).to(tl.int64)
    group = tl.program_id(1) % GROUPS
    token, head, asks = tile_rows(tl.program_id(0), n_query, group, REP, ROWS)
    home = places + batch * 8
    count = tl.load(home + 4)
    total_blocks = tl.cdiv(count, 32)
    start, stop = tile_span(first, last, batch * span_stride, token, asks)
    stop = tl.minimum(stop, count.to(tl.int32) - 1)  # the span of an unoccupied row may be anything
    at = tl.arange(0, WIDE)
    real = at < DIM
    place = batch * q_strides[0] + head.to(tl.int64) * q_strides[1] + token.to(tl.int64) * q_strides[2]
    q = tl.load(query + place[:, None] + at[None, :], mask=asks[:, None] & real[None, :], other=0).to(DOT)
    key_codes = codes + tl.multiple_of(tl.load(home), HINT) + group * total_blocks * 16 * DIM
    value_codes = codes + tl.multiple_of(tl.load(home + 1), HINT) + group * total_blocks * 16 * DIM
    key_steps = steps + tl.multiple_of(tl.load(home + 2), HINT) + group * total_blocks * 2 * DIM
    value_steps = steps + tl.multiple_of(tl.load(home + 3), HINT) + group * total_blocks * 64
    key_unit = tl.exp2(tl.load(home + 5).to(tl.float32))
    value_unit = tl.exp2(tl.load(home + 6).to(tl.float32))
    highest = tl.full((ROWS,), UNSEEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    begin = tl.min(start, 0) // 32
    end = tl.maximum(tl.max(stop, 0) + 32, 0) // 32
    part = tl.cdiv(tl.cdiv(end - begin, tl.num_programs(2)), BLOCKS) * BLOCKS
    begin += tl.program_id(2) * part
    end = tl.minimum(end, begin + part)
    half = tl.arange(0, 16)[None, :]
    for index in range(begin, end, BLOCKS):
        block = index + tl.arange(0, BLOCKS)
        there = block < end
        line = block.to(tl.int64)
        numbers = _numbers(key_codes, line, there, DIM, WIDE)
        within = there[:, None] & real[None, :]
        by_channel = key_steps + line[:, None] * 2 * DIM + at[None, :]
        key_scale = (tl.load(by_channel, mask=within, other=0).to(tl.float32) * key_unit)[:, None, :]
        key_low = (tl.load(by_channel + DIM, mask=within, other=0).to(tl.float32) * key_unit)[:, None, :]
        value_numbers = _numbers(value_codes, line, there, DIM, WIDE)
        for high in tl.static_range(2):
            k = _stand_for(((numbers >> (4 * high)) & 15) ^ 8, key_scale, key_low, BLOCKS * 16, WIDE, DOT)
            slot = tl.reshape(block[:, None] * 32 + 16 * high + half, (BLOCKS * 16,))
            seen = (slot[None, :] >= start[:, None]) & (slot[None, :] <= stop[:, None])
            scores = tl.where(seen, tile_scores(q, k, scale, cap, SOFTCAP), UNSEEN)
            weights, shrink, highest, total = weighed(scores, highest, total)
            by_token = value_steps + line[:, None] * 64 + 16 * high + half
            value_scale = (tl.load(by_token, mask=there[:, None], other=0).to(tl.float32) * value_unit)[:, :, None]
            value_low = (tl.load(by_token + 32, mask=there[:, None], other=0).to(tl.float32) * value_unit)[:, :, None]
            v = _stand_for(((value_numbers >> (4 * high)) & 15) ^ 8, value_scale, value_low, BLOCKS * 16, WIDE, DOT)
            acc = tl.dot(weights.to(DOT), v, acc * shrink[:, None], input_precision="tf32x3")
    total = tl.where(total == 0, 1.0, total)
    row = ((tl.program_id(2) * (tl.num_programs(1) // GROUPS) + batch) * GROUPS * REP + head) * n_query + token
    sees = stop >= start
    tl.store(levels + row, tl.where(sees, highest + tl.log2(total), UNSEEN), mask=asks)
    result = tl.where(sees[:, None], acc / total[:, None], 0.0)
    tl.store(out + row[:, None] * DIM + at[None, :], result, mask=asks[:, None] & real[None, :])


def tiles(dtype: torch.dtype, dim: int, rows: int) -> dict[str, int]:
    """Rows of a tile, its blocks of 32 tokens, and its pipeline, for rows of `dim` elements: as much as a program's
    registers hold."""
    wide, short = power_of_2(dim, 16), dtype != torch.float32
    few, deep = wide > (256 if short else 128), short or wide <= 128
    return {
        "ROWS": 16 if few else min(64 if short else 32, power_of_2(rows, 16)),
        "BLOCKS": max(1, (256 if short else 128) // wide),
        "num_warps": 4 if short and wide <= 256 else 8,
        "num_stages": 2 if deep else 1,
    }


def attend_beside(query: Tensor, places: Places, spans: Spans, softmax: Softmax, packed: PackedRows) -> Tensor:
    """`(B, H, Q, D)`; arguments as in `samkv_kernels.rows_attention.rows_attention`."""
    query, key, value = rows_contiguous(query, places.keys, places.values, spans)
    batch, heads, count, dim = query.shape
    rows = count * (heads // key.shape[1])
    tile = tiles(query.dtype, dim, rows)
    across = triton.cdiv(rows, tile["ROWS"]), batch * key.shape[1]
    live = max(2, parts_of(query, key, places))  # a single part would write the output itself
    parts = live + splits(across[0] * across[1], packed.places.longest, 32 * tile["BLOCKS"])
    into = torch.empty(parts, batch, heads, count, dim, dtype=torch.float32, device=query.device)
    levels = torch.empty(parts, batch, heads, count, dtype=torch.float32, device=query.device)
    launch(query, key, value, spans, softmax, into[:live].flatten(0, 1), levels[:live], places)
    _launch(query, key, packed, softmax, into[live:], levels[live:], across, tile)
    return joined(into, levels, query.new_empty(query.shape))


def _launch(
    query: Tensor, key: Tensor, packed: PackedRows, softmax: Softmax, into: Tensor, levels: Tensor,
    across: tuple[int, int], tile: dict[str, int],
) -> None:  # fmt: skip
    """Attend to what is packed, in as many parts as `into` and `levels` have room for."""
    places, (first, last, stride) = packed.places, flat(packed.spans)
    with on_device(query):
        attend_packed_kernel[(*across, len(levels))](
            query, places.codes, places.steps, into, levels, first, last, places.table, query.shape[2], stride,
            softmax.scale_for(query.shape[3]), softmax.softcap or 1.0, query.stride()[:3],
            **sizes(query, key, softmax), **tile, HINT=places.hint,
        )  # fmt: skip
