"""Scores of key blocks by their summaries alone: each chunk's query against that chunk's blocks.

Query and blocks are in one rotary frame, the chunk's own: rotating a few queries back costs less than rotating all keys
(`q . R(delta) k = (R(-delta) q) . k`). One call takes all layers and all chunks; the blocks of C chunks follow one
another, `counts` of each. Consecutive query heads share a key head (H = G * rep).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samkv_kernels.backend import Backend


def block_logits(query: Tensor, mean: Tensor, counts: Sequence[int], backend: Backend = "torch") -> Tensor:
    """`q . mean key of the block / sqrt(D)`: query `(C, L, H, Q, D)`, mean `(L, B, G, D)` -> fp32 `(L, H, Q, B)`.

    The mean over a block's tokens of q . k is exactly this, since it is linear in k.
    """
    _check(query, mean, counts)
    if backend == "triton":
        from samkv_kernels.jit.block_scores import logits

        return logits(query, mean, mean, counts, bound=False)
    return _each_chunk(lambda q, at: _grouped(q, mean[:, at]), query, counts)


def bound_logits(query: Tensor, low: Tensor, high: Tensor, counts: Sequence[int], backend: Backend = "torch") -> Tensor:
    """The most that `q . k / sqrt(D)` can be for a key between `low` and `high` (Quest, Tang et al. 2024); shapes as in
    `block_logits`."""
    _check(query, low, counts)
    if backend == "triton":
        from samkv_kernels.jit.block_scores import logits

        return logits(query, low, high, counts, bound=True)

    def bound(q: Tensor, at: slice) -> Tensor:
        return _grouped(q.clamp(min=0), high[:, at]) + _grouped(q.clamp(max=0), low[:, at])

    return _each_chunk(bound, query, counts)


def block_scores(query: Tensor, mean: Tensor, counts: Sequence[int], backend: Backend = "torch") -> Tensor:
    """`block_logits` of one pooled query `(C, L, H, D)` for each chunk, averaged over heads: fp32 `(L, B)`."""
    if backend == "triton":
        return block_logits(query[:, :, :, None], mean, counts, backend).mean((1, 2))
    _check(query[:, :, :, None], mean, counts)
    chunks, layers, heads, dim = query.shape
    grouped = query.float().view(chunks, layers, mean.shape[2], -1, dim).sum(3)
    parts = [(mean[:, at].float() * grouped[chunk][:, None]).sum((2, 3)) for chunk, at in enumerate(_slices(counts))]
    return torch.cat(parts, 1) / (heads * math.sqrt(dim))


def _each_chunk(score: Callable[[Tensor, slice], Tensor], query: Tensor, counts: Sequence[int]) -> Tensor:
    parts = [score(query[chunk].float(), at) for chunk, at in enumerate(_slices(counts))]
    return torch.cat(parts, -1) / math.sqrt(query.shape[-1])


def _grouped(query: Tensor, keys: Tensor) -> Tensor:
    """`(L, H, Q, D)` against `(L, B, G, D)` -> `(L, H, Q, B)`."""
    layers, heads, count, dim = query.shape
    keys = keys.float().transpose(1, 2)
    by_group = query.reshape(layers, keys.shape[1], heads // keys.shape[1] * count, dim)
    return (by_group @ keys.transpose(-1, -2)).view(layers, heads, count, keys.shape[2])


def _slices(counts: Sequence[int]) -> list[slice]:
    stops = torch.tensor([0, *counts]).cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip(stops, stops[1:], strict=False)]


def _check(query: Tensor, summary: Tensor, counts: Sequence[int]) -> None:
    if sum(counts) != summary.shape[1] or len(counts) != len(query):
        raise ValueError(f"{len(query)} queries and {summary.shape[1]} blocks do not fit blocks a chunk {list(counts)}")
    if query.shape[2] % summary.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads cannot share {summary.shape[2]} key heads evenly")
