"""Attention over spans of a compact cache, and the same attention's weights averaged over heads.

The rows of a tile are (token, query head of the group), token by token, so that keys are read once for all heads that
share them and any group size, 7 too, fills the tile. What a tile cannot see is left out by the loop's bounds: Triton
does not pipeline a load that stands behind an `if` inside a loop. Scores are kept in base 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import dot_type, on_device, power_of_2, require_one_device

if TYPE_CHECKING:
    from samkv_kernels.sparse_attention import Spans

_UNSEEN = tl.constexpr(-1.0e30)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(q, k, scale, cap, SOFTCAP: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
    if SOFTCAP:
        scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / cap) + 1.0))
    return scores * _LOG2E


@triton.jit
def _rows(start, n_query, group, REP: tl.constexpr, ROWS: tl.constexpr):
    row = start * ROWS + tl.arange(0, ROWS)
    return row // REP, group * REP + row % REP, row // REP < n_query


@triton.jit
def _span(first, last, spans_at, token, asks):
    start = tl.load(first + spans_at + token, mask=asks, other=2147483647)
    stop = tl.load(last + spans_at + token, mask=asks, other=-1)
    return start, stop


@triton.jit(do_not_specialize=["n_query"])
def attend_kernel(
    query, key, value, out, first, last, n_query, span_stride, scale, cap, q_strides, k_strides, v_strides, o_strides,
    GROUPS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, NORMALISER: tl.constexpr,
):  # fmt: skip
    # NORMALISER: what `out` gets is each row's log2 of its sum of exponentials, and values are not read.
    batch = (tl.program_id(1) // GROUPS).to(tl.int64)
    group = tl.program_id(1) % GROUPS
    token, head, asks = _rows(tl.program_id(0), n_query, group, REP, ROWS)
    start, stop = _span(first, last, batch * span_stride, token, asks)
    at = tl.arange(0, WIDE)[None, :]
    real = at < DIM
    place = batch * q_strides[0] + head.to(tl.int64) * q_strides[1] + token.to(tl.int64) * q_strides[2]
    q = tl.load(query + place[:, None] + at, mask=asks[:, None] & real, other=0).to(DOT)
    keys = key + batch * k_strides[0] + group * k_strides[1] + at
    values = value + batch * v_strides[0] + group * v_strides[1] + at
    highest = tl.full((ROWS,), _UNSEEN, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    end = tl.max(stop, 0) + 1
    for index in range(tl.min(start, 0), end, KEYS):
        slot = index + tl.arange(0, KEYS)
        there = (slot < end)[:, None] & real
        k = tl.load(keys + slot.to(tl.int64)[:, None] * k_strides[2], mask=there, other=0).to(DOT)
        scores = _scores(q, k, scale, cap, SOFTCAP)
        seen = (slot[None, :] >= start[:, None]) & (slot[None, :] <= stop[:, None])
        scores = tl.where(seen, scores, _UNSEEN)
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        if not NORMALISER:
            v = tl.load(values + slot.to(tl.int64)[:, None] * v_strides[2], mask=there, other=0).to(DOT)
            acc = tl.dot(weights.to(DOT), v, acc * shrink[:, None], input_precision="tf32x3")
        highest = higher
    total = tl.where(total == 0, 1.0, total)
    place = batch * o_strides[0] + head.to(tl.int64) * o_strides[1] + token.to(tl.int64) * o_strides[2]
    if NORMALISER:
        tl.store(out + place, highest + tl.log2(total), mask=asks)
    else:
        # A row that sees nothing has weighed what its neighbours see.
        result = tl.where((stop >= start)[:, None], acc / total[:, None], 0.0)
        tl.store(out + place[:, None] + at, result.to(out.dtype.element_ty), mask=asks[:, None] & real)


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
    start, stop = _span(first, last, batch * span_stride, token, asks)
    at = tl.arange(0, WIDE)[None, :]
    real = at < DIM
    there = (slot < n_key)[:, None] & real
    queries = query + batch * q_strides[0] + token.to(tl.int64)[:, None] * q_strides[2] + at
    keys = key + batch * k_strides[0] + slot.to(tl.int64)[:, None] * k_strides[2] + at
    acc = tl.zeros((ROWS, KEYS), tl.float32)
    for head in range(GROUPS * REP):
        q = tl.load(queries + head * q_strides[1], mask=asks[:, None] & real, other=0).to(DOT)
        k = tl.load(keys + (head // REP) * k_strides[1], mask=there, other=0).to(DOT)
        level = tl.load(normaliser + (batch * GROUPS * REP + head) * n_query + token, mask=asks, other=0)
        acc += tl.exp2(_scores(q, k, scale, cap, SOFTCAP) - level[:, None])
    seen = (slot[None, :] >= start[:, None]) & (slot[None, :] <= stop[:, None])
    place = (batch * n_query + token).to(tl.int64)[:, None] * n_key + slot[None, :]
    shown = asks[:, None] & (slot < n_key)[None, :]
    tl.store(out + place, tl.where(seen, acc / (GROUPS * REP), 0.0), mask=shown)


def tiles(dtype: torch.dtype, dim: int, rows: int) -> dict[str, int]:
    """Tile and pipeline for rows of `dim` elements, of which a launch has `rows` for one key head."""
    if dtype == torch.float32:
        size, keys, warps, stages = 64, 32, 4, 2
    elif dim > 128:
        size, keys, warps, stages = 64, 64, 8, 2
    else:
        size, keys, warps, stages = 128, 64, 8, 3
    if rows <= 16:
        size, warps = 16, 4
    return {"ROWS": min(size, power_of_2(rows, 16)), "KEYS": keys, "num_warps": warps, "num_stages": stages}


def sizes(query: Tensor, key: Tensor, softcap: float | None) -> dict[str, Any]:
    """The constants of a launch that follow from shapes and types."""
    heads, groups, dim = query.shape[1], key.shape[1], query.shape[3]
    return {
        "GROUPS": groups, "REP": heads // groups, "DIM": dim, "WIDE": power_of_2(dim, 16),
        "SOFTCAP": softcap is not None, "DOT": dot_type(query.dtype),
    }  # fmt: skip


def attend(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, softcap: float | None) -> Tensor:
    """`(B, H, Q, D)`; arguments as in `samkv_kernels.sparse_attention.sparse_attention`."""
    query, key, value = _rows_contiguous(query, key, value, spans)
    batch, heads, count, dim = query.shape
    out = torch.empty(batch, heads, count, dim, dtype=query.dtype, device=query.device)
    if out.numel() == 0 or key.shape[2] == 0:
        return out.zero_()
    first, last, stride = _flat(spans)
    rows = count * (heads // key.shape[1])
    tile = tiles(query.dtype, dim, rows)
    with on_device(query):
        attend_kernel[(triton.cdiv(rows, tile["ROWS"]), batch * key.shape[1])](
            query, key, value, out, first, last, count, stride, scale, softcap or 1.0,
            query.stride()[:3], key.stride()[:3], value.stride()[:3], out.stride()[:3],
            **sizes(query, key, softcap), **tile, NORMALISER=False,
        )  # fmt: skip
    return out


def shares(query: Tensor, key: Tensor, spans: Spans, scale: float, softcap: float | None) -> Tensor:
    """fp32 `(B, Q, T)`; arguments as in `samkv_kernels.sparse_attention.attention_shares`."""
    query, key = _rows_contiguous(query, key, key, spans)[:2]
    batch, heads, count, dim = query.shape
    total = key.shape[2]
    out = torch.empty(batch, count, total, dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    levels = torch.empty(batch, heads, count, dtype=torch.float32, device=query.device)
    first, last, stride = _flat(spans)
    rows = count * (heads // key.shape[1])
    fixed, one, two = sizes(query, key, softcap), tiles(query.dtype, dim, rows), tiles(query.dtype, dim, count)
    two["ROWS"] = min(two["ROWS"], 32 if query.dtype == torch.float32 else 64)
    strides = query.stride()[:3], key.stride()[:3]
    with on_device(query):
        attend_kernel[(triton.cdiv(rows, one["ROWS"]), batch * key.shape[1])](
            query, key, key, levels, first, last, count, stride, scale, softcap or 1.0,
            *strides, strides[1], levels.stride(), **fixed, **one, NORMALISER=True,
        )  # fmt: skip
        shares_kernel[(triton.cdiv(total, two["KEYS"]), triton.cdiv(count, two["ROWS"]), batch)](
            query, key, levels, out, first, last, count, total, stride, scale, softcap or 1.0, *strides, **fixed, **two
        )
    return out


def _rows_contiguous(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> list[Tensor]:
    require_one_device(query, key, value, spans.first, spans.last)
    if key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(
            f"queries are {query.dtype}, keys {key.dtype}, values {value.dtype}; convert them to one dtype"
        )
    return [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]


def _flat(spans: Spans) -> tuple[Tensor, Tensor, int]:
    """First and last as the kernels read them, and the step from one request's to the next's (0: all share them)."""
    first, last = spans.first.int().contiguous(), spans.last.int().contiguous()
    return first, last, first.shape[1] if len(first) > 1 else 0
