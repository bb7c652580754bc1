"""Scores of block summaries, all chunks and layers in one launch.

A program computes a tile of query rows (token by token, the heads that share a key head side by side, so that any group
size fills it) against a tile of one chunk's blocks. Products are summed in fp32, each made of three tf32 ones, which
is exact to a few units in the last place: selection should not depend on the backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from samkv_kernels.jit.launching import on_device, require_one_device

ROWS, BLOCKS, STEP = 32, 32, 32
WARPS = 4


@triton.jit(do_not_specialize=["count", "total"])
def logits_kernel(
    query, low, high, out, starts, count, total, scale, query_strides, low_strides, high_strides,
    GROUPS: tl.constexpr, REP: tl.constexpr, DIM: tl.constexpr, STEP: tl.constexpr, BOUND: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(count * REP, ROWS)
    chunk = tl.program_id(1)
    layer = (tl.program_id(2) // GROUPS).to(tl.int64)
    group = tl.program_id(2) % GROUPS
    row = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    head = group * REP + row % REP
    token = row // REP
    block = tl.load(starts + chunk) + (tl.program_id(0) // tiles) * BLOCKS + tl.arange(0, BLOCKS)
    stop = tl.load(starts + chunk + 1)
    place = chunk.to(tl.int64) * query_strides[0] + layer * query_strides[1]
    place += head * query_strides[2] + token * query_strides[3]
    near = layer * high_strides[0] + block * high_strides[1] + group * high_strides[2]
    far = layer * low_strides[0] + block * low_strides[1] + group * low_strides[2]
    scores = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in range(0, DIM, STEP):
        at = start + tl.arange(0, STEP)
        asks = (token < count)[:, None] & (at < DIM)[None, :]
        known = (block < stop)[:, None] & (at < DIM)[None, :]
        q = tl.load(query + place[:, None] + at[None, :], mask=asks, other=0).to(tl.float32)
        k = tl.load(high + near[:, None] + at[None, :], mask=known, other=0).to(tl.float32)
        if BOUND:
            least = tl.load(low + far[:, None] + at[None, :], mask=known, other=0).to(tl.float32)
            scores = tl.dot(tl.minimum(q, 0.0), tl.trans(least), scores, input_precision="tf32x3")
            q = tl.maximum(q, 0.0)
        scores = tl.dot(q, tl.trans(k), scores, input_precision="tf32x3")
    target = ((layer * GROUPS * REP + head) * count + token) * total
    shown = (token < count)[:, None] & (block < stop)[None, :]
    tl.store(out + target[:, None] + block[None, :], scores * scale, mask=shown)


def logits(query: Tensor, low: Tensor, high: Tensor, counts: Sequence[int], bound: bool) -> Tensor:
    """fp32 `(L, H, Q, B)` of query `(C, L, H, Q, D)` and summaries `(L, B, G, D)`; `low` is read only for the bound."""
    require_one_device(query, low, high)
    query, low, high = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, low, high))
    chunks, layers, heads, count, dim = query.shape
    groups, total, longest = high.shape[2], high.shape[1], max(counts, default=0)
    out = torch.empty(layers, heads, count, total, dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out
    starts = torch.tensor([0, *counts]).cumsum(0).to(query.device, torch.int32)
    rep = heads // groups
    grid = (triton.cdiv(count * rep, ROWS) * triton.cdiv(longest, BLOCKS), chunks, layers * groups)
    with on_device(query):
        logits_kernel[grid](
            query, low, high, out, starts, count, total, 1 / math.sqrt(dim),
            query.stride()[:4], low.stride()[:3], high.stride()[:3],
            GROUPS=groups, REP=rep, DIM=dim, STEP=STEP, BOUND=bound, ROWS=ROWS, BLOCKS=BLOCKS,
            num_warps=WARPS,
        )  # fmt: skip
    return out
