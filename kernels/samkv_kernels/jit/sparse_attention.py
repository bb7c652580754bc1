"""Attention over spans of a compact cache, and the same attention's weights averaged over heads.

The rows of a tile are (token, query head of the group), token by token, so that keys are read once for all heads that
share them, and any group size, even 7, fills the tile. The loop's bounds leave out what a tile does not attend to:
Triton does not pipeline a load under an `if` inside a loop. Scores are kept in base 2.

A few queries over many keys make too few tiles to fill a GPU: their keys are then split among programs, and what these
find is combined.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import dot_type, on_device, power_of_2, require_one_device

if TYPE_CHECKING:
    from samkv_kernels.rows_attention import Places
    from samkv_kernels.softmax import Softmax
    from samkv_kernels.sparse_attention import Spans

PROGRAMS = 256
"""About two for each multiprocessor of a large GPU."""
LEAST_TILES = 4
MOST_SPLITS = 64

ROOMY = 224 << 10
"""Bytes of shared memory that the largest tile takes: 0.962 ms instead of 1.015 for 2,497 queries over 16,424 keys,
11.4 instead of 12.0 for 9,870 over 65,576 (heads of an 8B Llama, bfloat16, one H200)."""
LONG = 4096
"""Number of rows above which that tile is worth it."""
AMPLE = 163 << 10
"""Bytes that a program has on an A100; on GPUs for desks (GeForce 30 to 50, RTX A and Ada, L4) it has 99 KiB."""

UNSEEN = tl.constexpr(-1.0e30)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_scores(q, k, scale, cap, SOFTCAP: tl.constexpr):
    dots = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    if SOFTCAP:
        scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * (dots * scale) / cap) + 1.0)) * _LOG2E
    else:
        scores = dots * (scale * _LOG2E)
    return scores


@triton.jit
def tile_rows(start, n_query, group, REP: tl.constexpr, ROWS: tl.constexpr):
    row = start * ROWS + tl.arange(0, ROWS)
    return row // REP, group * REP + row % REP, row // REP < n_query


@triton.jit
def tile_span(first, last, spans_at, token, asks):
    start = tl.load(first + spans_at + token, mask=asks, other=2147483647)
    stop = tl.load(last + spans_at + token, mask=asks, other=-1)
    return start, stop


@triton.jit
def _open(start, stop, asks, begin, end, KEYS: tl.constexpr):
    # Whole tiles from `low` to `high` that every row attends to: nothing is compared there. Before and after them are
    # tiles that only some rows attend to.
    first = tl.max(tl.where(asks, start, 0), 0)
    behind = tl.min(tl.where(asks, stop, 2147483646), 0) + 1
    low = tl.minimum(begin + tl.cdiv(tl.maximum(first - begin, 0), KEYS) * KEYS, end)
    high = low + tl.maximum(tl.minimum(behind, end) - low, 0) // KEYS * KEYS
    return low, high


@triton.jit
def _whole(pointers, real, WHOLE: tl.constexpr):
    return tl.load(pointers) if WHOLE else tl.load(pointers, mask=real, other=0)


@triton.jit
def weighed(scores, highest, total):
    higher = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(highest - higher)
    return weights, shrink, higher, total * shrink + tl.sum(weights, 1)


@triton.jit(do_not_specialize=["n_query"])
def attend_kernel(
    query, key, value, out, levels, first, last, sinks, places, n_query, span_stride, scale, cap,
    q_strides, k_strides, v_strides, o_strides,
    GROUPS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, NORMALISER: tl.constexpr,
    SPLITS: tl.constexpr, APART: tl.constexpr, HINT: tl.constexpr,
):  # fmt: skip
    # NORMALISER: only `levels` are wanted, log2 of each row's sum of exponentials; values are not read. Each program
    # along the third axis takes a part of the keys: both outputs are then per part, and `combine_kernel` joins them.
    # APART: every request has keys and values of its own, at its `places`, multiples of HINT.
    batch = (tl.program_id(1) // GROUPS).to(tl.int64)
    group = tl.program_id(1) % GROUPS
    # The last queries come first: they attend to most, and short programs fill what is left of the time.
    token, head, asks = tile_rows(tl.num_programs(0) - 1 - tl.program_id(0), n_query, group, REP, ROWS)
    start, stop = tile_span(first, last, batch * span_stride, token, asks)
    at = tl.arange(0, WIDE)[None, :]
    real = at < DIM
    place = batch * q_strides[0] + head.to(tl.int64) * q_strides[1] + token.to(tl.int64) * q_strides[2]
    q = tl.load(query + place[:, None] + at, mask=asks[:, None] & real, other=0).to(DOT)
    if APART:
        home = places + batch * 4
        keys = key + tl.multiple_of(tl.load(home), HINT) + group * tl.multiple_of(tl.load(home + 2), HINT) + at
        values = value + tl.multiple_of(tl.load(home + 1), HINT) + group * tl.multiple_of(tl.load(home + 3), HINT) + at
    else:
        keys = key + batch * k_strides[0] + group * k_strides[1] + at
        values = value + batch * v_strides[0] + group * v_strides[1] + at
    highest = tl.full((ROWS,), UNSEEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if SINKS:  # the first part begins with the sink, which adds no value
        sink = tl.load(sinks + head, mask=asks, other=0).to(tl.float32) * _LOG2E
        highest = tl.where(tl.program_id(2) == 0, sink, highest)
        total = tl.where(tl.program_id(2) == 0, 1.0, total)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    begin = tl.min(start, 0)
    end = tl.max(stop, 0) + 1
    split = tl.program_id(2)
    if SPLITS > 1:
        part = tl.cdiv(tl.cdiv(end - begin, SPLITS), KEYS) * KEYS
        begin += split * part
        end = tl.minimum(end, begin + part)
    low, high = _open(start, stop, asks, begin, end, KEYS)
    before = tl.cdiv(low - begin, KEYS)
    for tile in range(0, before + tl.cdiv(end - high, KEYS)):
        index = tl.where(tile < before, begin + tile * KEYS, high + (tile - before) * KEYS)
        slot = index + tl.arange(0, KEYS)
        there = (slot < end)[:, None] & real
        k = tl.load(keys + slot.to(tl.int64)[:, None] * k_strides[2], mask=there, other=0).to(DOT)
        scores = tile_scores(q, k, scale, cap, SOFTCAP)
        seen = (slot[None, :] >= start[:, None]) & (slot[None, :] <= stop[:, None])
        scores = tl.where(seen, scores, UNSEEN)
        weights, shrink, highest, total = weighed(scores, highest, total)
        if not NORMALISER:
            v = tl.load(values + slot.to(tl.int64)[:, None] * v_strides[2], mask=there, other=0).to(DOT)
            acc = tl.dot(weights.to(DOT), v, acc * shrink[:, None], input_precision="tf32x3")
    for index in range(low, high, KEYS):
        slot = (index + tl.arange(0, KEYS)).to(tl.int64)[:, None]
        k = _whole(keys + slot * k_strides[2], real, DIM == WIDE).to(DOT)
        weights, shrink, highest, total = weighed(tile_scores(q, k, scale, cap, SOFTCAP), highest, total)
        if not NORMALISER:
            v = _whole(values + slot * v_strides[2], real, DIM == WIDE).to(DOT)
            acc = tl.dot(weights.to(DOT), v, acc * shrink[:, None], input_precision="tf32x3")
    total = tl.where(total == 0, 1.0, total)
    batch += split * (tl.num_programs(1) // GROUPS)
    if NORMALISER or SPLITS > 1:
        level = (batch * GROUPS * REP + head) * n_query + token
        tl.store(levels + level, highest + tl.log2(total), mask=asks)
    if not NORMALISER:
        place = batch * o_strides[0] + head.to(tl.int64) * o_strides[1] + token.to(tl.int64) * o_strides[2]
        # A row that attends to nothing has weighed what its neighbours attend to.
        result = tl.where((stop >= start)[:, None], acc / total[:, None], 0.0)
        tl.store(out + place[:, None] + at, result.to(out.dtype.element_ty), mask=asks[:, None] & real)


@triton.jit(do_not_specialize=["rows", "count"])
def combine_kernel(
    parts, part_levels, out, levels, rows, count, DIM: tl.constexpr, WIDE: tl.constexpr, SPLITS: tl.constexpr,
    NORMALISER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    there = tl.arange(0, SPLITS) < count
    place = tl.arange(0, SPLITS).to(tl.int64) * rows + row
    level = tl.load(part_levels + place, mask=there, other=UNSEEN)
    highest = tl.max(level, 0)
    weights = tl.exp2(level - highest)
    total = tl.sum(weights, 0)
    if NORMALISER:
        tl.store(levels + row, highest + tl.log2(total))
    else:
        at = tl.arange(0, WIDE)
        x = tl.load(parts + place[:, None] * DIM + at[None, :], mask=there[:, None] & (at < DIM)[None, :], other=0)
        result = tl.sum(x * weights[:, None], 0) / total
        tl.store(out + row * DIM + at, result.to(out.dtype.element_ty), mask=at < DIM)


@triton.jit(do_not_specialize=["n_query", "n_key"])
def shares_kernel(
    query, key, normaliser, out, first, last, n_query, n_key, span_stride, scale, cap, q_strides, k_strides,
    GROUPS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    asks = token < n_query
    start, stop = tile_span(first, last, batch * span_stride, token, asks)
    at = tl.arange(0, WIDE)[None, :]
    real = at < DIM
    there = (slot < n_key)[:, None] & real
    queries = query + batch * q_strides[0] + token.to(tl.int64)[:, None] * q_strides[2] + at
    keys = key + batch * k_strides[0] + slot.to(tl.int64)[:, None] * k_strides[2] + at
    acc = tl.zeros((ROWS, KEYS), tl.float32)
    if tl.program_id(0) * KEYS <= tl.max(stop, 0):  # else no query attends to them: room after a prompt
        for head in range(GROUPS * REP):
            q = tl.load(queries + head * q_strides[1], mask=asks[:, None] & real, other=0).to(DOT)
            k = tl.load(keys + (head // REP) * k_strides[1], mask=there, other=0).to(DOT)
            level = tl.load(normaliser + (batch * GROUPS * REP + head) * n_query + token, mask=asks, other=0)
            acc += tl.exp2(tile_scores(q, k, scale, cap, SOFTCAP) - level[:, None])
    seen = (slot[None, :] >= start[:, None]) & (slot[None, :] <= stop[:, None])
    place = (batch * n_query + token).to(tl.int64)[:, None] * n_key + slot[None, :]
    shown = asks[:, None] & (slot < n_key)[None, :]
    tl.store(out + place, tl.where(seen, acc / (GROUPS * REP), 0.0), mask=shown)


def tiles(dtype: torch.dtype, dim: int, rows: int, room: int = AMPLE) -> dict[str, int]:
    """Tile and pipeline for rows of `dim` elements, of which a launch has `rows` for one key head, and a program `room`
    bytes of shared memory."""
    tight = room < AMPLE
    if dim > 256:  # half the rows and half the keys that half as many dimensions get
        size, keys, warps, stages = (16, 16, 4, 1) if dtype == torch.float32 else (32, 32, 8, 2)
    elif dtype == torch.float32 and dim > 128:  # its tiles and both halves of what tf32x3 splits are in shared memory
        size, keys, warps, stages = 32, 16, 4, 1
    elif dtype == torch.float32:
        size, keys, warps, stages = 32 if tight and dim > 64 else 64, 32, 4, 2
    elif dim > 128:
        size, keys, warps, stages = 64, 32 if tight else 64, 8, 2
    else:
        size, keys, warps, stages = 128, 128 if room >= ROOMY and rows > LONG else 64, 8, 3
    if rows <= 16:
        size, warps = 16, 4
    return {"ROWS": min(size, power_of_2(rows, 16)), "KEYS": keys, "num_warps": warps, "num_stages": stages}


@cache
def room_on(device: torch.device) -> int:
    """The bytes of shared memory that a program may have on this device."""
    if device.type != "cuda":
        return AMPLE
    facts: Any = torch.cuda.get_device_properties(device)  # torch's own types lack some of them
    room = int(getattr(facts, "shared_memory_per_block_optin", AMPLE))
    return room if facts.major == 9 else min(room, AMPLE)  # the largest tile has been run on no other


def share_tiles(dtype: torch.dtype, dim: int, rows: int) -> dict[str, int]:
    """As `tiles`, for weights: these are results, which take registers."""
    tile = tiles(dtype, dim, rows)
    return tile | {"ROWS": min(tile["ROWS"], 32 if dtype == torch.float32 else 64)}


def sizes(query: Tensor, key: Tensor, softmax: Softmax) -> dict[str, Any]:
    """The constants of a launch that follow from shapes and types."""
    heads, groups, dim = query.shape[1], key.shape[1], query.shape[3]
    return {
        "GROUPS": groups, "REP": heads // groups, "DIM": dim, "WIDE": power_of_2(dim, 16),
        "SOFTCAP": softmax.softcap is not None, "DOT": dot_type(query.dtype),
    }  # fmt: skip


def splits(programs: int, keys: int, tile: int) -> int:
    """Into how many parts the keys of a launch of that many `programs` are split, so that a GPU has enough to do: a
    power of two; every part has a few tiles of `tile` keys."""
    wanted = int(min(-(-PROGRAMS // programs), keys / (LEAST_TILES * tile), MOST_SPLITS))
    return 1 << max(0, wanted.bit_length() - 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, softmax: Softmax, apart: Places | None = None,
    normaliser: bool = False,
) -> Tensor:  # fmt: skip
    """`(B, H, Q, D)`, or the rows' normalisers, fp32 `(B, H, Q)`. Where keys are not split, a query's heads are side by
    side in memory, as models join them."""
    batch, heads, count, dim = query.shape
    parts = parts_of(query, key, apart)
    levels = torch.empty(parts, batch, heads, count, dtype=torch.float32, device=query.device)
    if normaliser:
        into = levels[..., None]
    elif parts > 1:
        into = torch.empty(parts * batch, heads, count, dim, dtype=torch.float32, device=query.device)
    else:
        into = query.new_empty(batch, count, heads, dim).transpose(1, 2)
    launch(query, key, value, spans, softmax, into, levels, apart, normaliser)
    if parts > 1:
        return joined(into, levels, torch.empty_like(levels[0]) if normaliser else query.new_empty(query.shape))
    return levels[0] if normaliser else into


def _tile(query: Tensor, key: Tensor) -> tuple[dict[str, int], int]:
    """The tile of a launch, and how many such tiles there are for one part of the keys."""
    rows = query.shape[2] * (query.shape[1] // key.shape[1])
    tile = tiles(query.dtype, query.shape[3], rows, room_on(query.device))
    return tile, int(triton.cdiv(rows, tile["ROWS"])) * query.shape[0] * key.shape[1]


def parts_of(query: Tensor, key: Tensor, apart: Places | None) -> int:
    """Into how many parts the keys of a launch are split."""
    tile, programs = _tile(query, key)
    return splits(programs, key.shape[2] if apart is None else apart.longest, tile["KEYS"])


def launch(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, softmax: Softmax, into: Tensor, levels: Tensor,
    apart: Places | None = None, normaliser: bool = False,
) -> None:  # fmt: skip
    """Attend in as many parts as there are `levels` `(parts, B, H, Q)`: with one, `into` is the output; with more it is
    the parts', fp32 `(parts * B, H, Q, D)`. If requests have their own keys, `apart` says where, relative to `key` and
    `value`."""
    batch, heads, count, dim = query.shape
    tile, programs = _tile(query, key)
    (first, last, stride), across = flat(spans), batch * key.shape[1]
    how = {"SPLITS": len(levels), "NORMALISER": normaliser, "SINKS": softmax.sinks is not None}
    where = {"APART": apart is not None, "HINT": 1 if apart is None else apart.hint}
    sinks = levels if softmax.sinks is None else softmax.sinks.contiguous()
    with on_device(query):
        attend_kernel[(programs // across, across, len(levels))](
            query, key, value, into, levels, first, last, sinks, first if apart is None else apart.table, count,
            stride, softmax.scale_for(dim), softmax.softcap or 1.0, query.stride()[:3], key.stride()[:3],
            value.stride()[:3], into.stride()[-4:-1], **sizes(query, key, softmax), **tile, **how, **where,
        )  # fmt: skip


def joined(into: Tensor, levels: Tensor, out: Tensor) -> Tensor:
    """Join what all parts found and write it to `out`: by head `(B, H, Q, D)`, or only normalisers `(B, H, Q)`."""
    parts, rows, normaliser = len(levels), levels[0].numel(), out.ndim == 3
    dim = 1 if normaliser else out.shape[3]
    splits, wide = power_of_2(parts), power_of_2(dim, 16)
    how = {"DIM": dim, "WIDE": wide, "SPLITS": splits, "NORMALISER": normaliser}
    with on_device(out):
        combine_kernel[(rows,)](into, levels, out, out, rows, parts, **how, num_warps=4 if splits * wide <= 8192 else 8)
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, softmax: Softmax) -> Tensor:
    """`(B, H, Q, D)`; arguments as in `samkv_kernels.sparse_attention.sparse_attention`."""
    query, key, value = rows_contiguous(query, key, value, spans)
    if query.numel() == 0 or key.shape[2] == 0:
        return query.new_zeros(query.shape)
    return _attend(query, key, value, spans, softmax)


def attend_apart(query: Tensor, places: Places, spans: Spans, softmax: Softmax) -> Tensor:
    """`(B, H, Q, D)`; arguments as in `samkv_kernels.rows_attention.rows_attention`."""
    query, key, value = rows_contiguous(query, places.keys, places.values, spans)
    return _attend(query, key, value, spans, softmax, places)


def shares(query: Tensor, key: Tensor, spans: Spans, softmax: Softmax) -> Tensor:
    """fp32 `(B, Q, T)`; arguments as in `samkv_kernels.sparse_attention.attention_shares`."""
    query, key = rows_contiguous(query, key, key, spans)[:2]
    batch, heads, count, dim = query.shape
    total = key.shape[2]
    out = torch.empty(batch, count, total, dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    levels = _attend(query, key, key, spans, softmax, normaliser=True)
    first, last, stride = flat(spans)
    fixed, two = sizes(query, key, softmax), share_tiles(query.dtype, dim, count)
    scale, cap, strides = softmax.scale_for(dim), softmax.softcap or 1.0, (query.stride()[:3], key.stride()[:3])
    with on_device(query):
        shares_kernel[(triton.cdiv(total, two["KEYS"]), triton.cdiv(count, two["ROWS"]), batch)](
            query, key, levels, out, first, last, count, total, stride, scale, cap, *strides, **fixed, **two
        )
    return out


def rows_contiguous(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> list[Tensor]:
    require_one_device(query, key, value, spans.first, spans.last)
    if key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(
            f"queries are {query.dtype}, keys {key.dtype}, values {value.dtype}; convert them to one dtype"
        )
    return [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]


def flat(spans: Spans) -> tuple[Tensor, Tensor, int]:
    """First and last as the kernels read them, and the step from one request's to the next (0: all share them)."""
    first, last = spans.first.int().contiguous(), spans.last.int().contiguous()
    return first, last, first.shape[1] if len(first) > 1 else 0
