"""`sparse_attention` on a CPU: matrix products of a few queries at a time, in the tensors' own dtype.

There SDPA computes bfloat16 in float32 (but with AMX), and takes as long for the one query of a decoding step as for
32. Products of pieces that stay in the CPU's cache take a third of the time in bfloat16 on a CPU that multiplies it; in
float32 as long as SDPA where torch multiplies with MKL, and half of that where it uses oneDNN
(`torch.set_float32_matmul_precision("medium")`). Scores are rounded to the dtype, as in transformers' own "eager".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans

ROWS = 192
"""Rows of a product: a piece's queries times the heads that share a key head. More overflow the cache at 4,000 keys."""
WASTE = 1 << 13
"""A query begins a new piece where this many scores, in all rows of the piece so far, would be of no use: what a model
computes at the beginning of a prompt and what at its end would otherwise share one, as wide as the prompt is long."""
SMALL = 1 << 20
"""Most scores to compute for all key heads in one product: a decoding step's are not worth one call per head."""


def fused_is_faster(dtype: torch.dtype) -> bool:
    """Whether SDPA is faster over a whole causal prefill on this CPU: in float32 (4,096 tokens, 12 query and 4 key
    heads of 64, one thread: 268 ms, in pieces 455), and in bfloat16 with AMX (124 ms, in pieces 318)."""
    return dtype == torch.float32 or _is_fused(dtype)


def _is_fused(dtype: torch.dtype) -> bool:
    """Whether SDPA multiplies this dtype by the CPU's own means: bfloat16 with AMX."""
    return dtype == torch.bfloat16 and _has_amx()


FUSED, NARROW = 32, 64
"""The fewest queries of a piece, above one, and the widest heads, with which SDPA is faster over a single piece where
it multiplies bfloat16 with AMX: 64 queries of 12 heads of 64 over 4,136 keys: 4.5 ms, by products 6.1; one 0.6 and 0.8;
but four 2.3 and 0.9, and 64 queries of 32 heads of 128 31 and 25. In float32 it never is (614 of 12: 61 ms each)."""


@cache
def _has_amx() -> bool:
    capabilities: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("amx_bf16"))


@dataclass(frozen=True, slots=True)
class Edge:
    """Keys that some queries of a piece attend to and others do not: the `columns` among the piece's keys, and what is
    added to their scores, 0 or -inf, `(rows, columns)`."""

    columns: slice
    bias: Tensor


@dataclass(frozen=True)
class Piece:
    """Neighbouring queries `rows` and the `keys` that any of them attends to; `blind` marks rows attending to none."""

    rows: slice
    keys: slice
    edges: tuple[Edge, ...]
    blind: Tensor | None

    @cached_property
    def mask(self) -> Tensor | None:
        """What its queries attend to among its keys, bool `(rows, keys)`; None: all."""
        if not self.edges:
            return None
        seen = torch.ones(len(self.edges[0].bias), self.keys.stop - self.keys.start, dtype=torch.bool)
        for edge in self.edges:
            seen[:, edge.columns] = edge.bias == 0
        return seen

    @classmethod
    def open(cls, rows: int, keys: int) -> Piece:
        """The piece of `rows` queries that attend to all keys."""
        return cls(slice(0, rows), slice(0, keys), (), None)

    @classmethod
    def of(cls, rows: slice, first: Tensor, last: Tensor) -> Piece:
        """The piece of queries that attend to the keys from `first` to `last`, each `(rows,)`."""
        seeing = last >= first
        low, high = (int(first[seeing].min()), int(last[seeing].max()) + 1) if seeing.any() else (0, 0)
        at = torch.arange(low, high)
        hidden = (at < first[:, None]) | (at > last[:, None])
        partly = hidden[seeing].any(0).nonzero()[:, 0].tolist()
        edges = tuple(
            Edge(
                slice(start, stop), torch.zeros(len(first), stop - start).masked_fill(hidden[:, start:stop], -torch.inf)
            )
            for start, stop in _runs(partly)
        )
        return cls(rows, slice(low, high), edges, None if seeing.all() else ~seeing)


def _runs(sorted_numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of neighbours as (start, stop)."""
    runs: list[tuple[int, int]] = []
    for number in sorted_numbers:
        start = runs.pop()[0] if runs and runs[-1][1] == number else number
        runs.append((start, number + 1))
    return runs


def pieces_of(spans: Spans, shared: int) -> list[list[Piece]]:
    """The queries of every request of `spans` in pieces, for models in which `shared` heads share a key head."""
    size = max(1, ROWS // shared)
    return [
        [Piece.of(rows, first[rows], last[rows]) for rows in _neighbours(first.tolist(), last.tolist(), size)]
        for first, last in zip(spans.first.cpu().long(), spans.last.cpu().long(), strict=True)
    ]


def _neighbours(first: list[int], last: list[int], size: int) -> Iterator[slice]:
    """Runs of at most `size` queries that attend to much the same keys."""
    start = 0
    for row in range(1, len(first)):
        moved = max(last[row] - last[row - 1], first[row] - first[row - 1])
        if row - start == size or moved * (row - start) > WASTE:
            yield slice(start, row)
            start = row
    if first:
        yield slice(start, len(first))


def piecewise_attention(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Sequence[Piece]], softmax: Softmax = PLAIN,
    shares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `sparse_attention`: `query` `(B, H, Q, D)`, `key` `(B, G, T, D)`, `value` `(B, G, T, E)` -> `(B, H, Q, E)`.

    `pieces` are those of its spans (`pieces_of`), one list per request or one for all. The weights, averaged over
    heads, are added to `shares` `(B, Q, T)` if given: what `piecewise_shares` would compute once more.
    """
    wide = value.shape[3]
    out = torch.empty_like(query) if wide == query.shape[3] else query.new_empty(*query.shape[:3], wide)
    scaled = query * softmax.scale_for(query.shape[-1])
    for request in range(len(query)):
        for piece in pieces[request if len(pieces) > 1 else 0]:
            into = None if shares is None else shares[request, piece.rows, piece.keys]
            _attend(out[request], scaled[request], key[request], value[request], piece, softmax, into)
    return out


def _attend(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, piece: Piece, softmax: Softmax, shares: Tensor | None
) -> None:
    """Fill the rows of a piece in `out` `(H, Q, E)`, one key head at a time unless there is little to do."""
    if shares is None and softmax.plain and key.shape == value.shape and _fused_pays(query, piece):
        _attend_fused(out, query, key, value, piece)
        return
    groups, shared = len(key), len(query) // len(key)
    q, keys = query[:, piece.rows].unflatten(0, (groups, shared)), piece.keys
    into = out[:, piece.rows].unflatten(0, (groups, shared))
    step = groups if q[..., 0].numel() * (keys.stop - keys.start) <= SMALL else 1
    for group in range(0, groups, step):
        part = slice(group, group + step)
        own = softmax.of_heads(slice(group * shared, (group + step) * shared))
        weights = _weights(q[part], key[part, keys], piece, own)
        into[part] = _products(weights, value[part, keys].to(weights.dtype)).view(into[part].shape)
        if shares is not None:
            for head in weights.unflatten(1, q.shape[1:3]).flatten(0, 1):  # half as long as a sum over heads
                shares.add_(head, alpha=1 / len(query))


def _fused_pays(query: Tensor, piece: Piece) -> bool:
    """Whether SDPA is faster for this piece of `query` `(H, Q, D)`."""
    rows = piece.rows.stop - piece.rows.start
    return (rows == 1 or (rows >= FUSED and query.shape[2] <= NARROW)) and _is_fused(query.dtype)


def _attend_fused(out: Tensor, query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> None:
    """The same by SDPA, of scaled queries."""
    own = query[None, :, piece.rows], key[None, :, piece.keys], value[None, :, piece.keys]
    grouped = len(key) != len(query)
    found = F.scaled_dot_product_attention(*own, attn_mask=piece.mask, scale=1.0, enable_gqa=grouped)[0]
    out[:, piece.rows] = found if piece.blind is None else found.masked_fill(piece.blind[:, None], 0)


def _weights(q: Tensor, key: Tensor, piece: Piece, softmax: Softmax) -> Tensor:
    """Weights `(G, rep * Q, T)` of `(G, rep, Q, D)` over `(G, T, D)`; 0 for queries that attend to nothing."""
    weights = _softmax(_scores(q, key, piece, softmax.softcap), q, softmax)
    return weights if piece.blind is None else weights.masked_fill(piece.blind.repeat(q.shape[1])[:, None], 0)


def _softmax(scores: Tensor, q: Tensor, softmax: Softmax) -> Tensor:
    """Weights of the scores `(G, rep * Q, T)` of queries `(G, rep, Q, D)`, whose heads are all those of `softmax`."""
    if softmax.sinks is None:
        return scores.softmax(-1)
    by_head = scores.view(q.shape[0] * q.shape[1], q.shape[2], scores.shape[2])
    return softmax.weights(by_head).view(scores.shape)


def _scores(q: Tensor, key: Tensor, piece: Piece, softcap: float | None) -> Tensor:
    """Scores `(G, rep * Q, T)` of `(G, rep, Q, D)` over `(G, T, D)`, -inf where a query does not attend to a key."""
    rows = q.flatten(1, 2)
    if rows.dtype == torch.float16:  # hardly any CPU multiplies it
        rows, key = rows.float(), key.float()
    scores = _products(rows, key.mT)
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    for edge in piece.edges:
        scores.unflatten(1, q.shape[1:3])[..., edge.columns] += edge.bias.to(scores.dtype)
    return scores


def _products(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` `(G, M, N)` of `(G, M, K)` and `(G, K, N)`; in bfloat16 matrix by matrix. For all at once torch first
    copies what is transposed, as keys are, or not contiguous, and that takes longer than a product with few rows."""
    if a.dtype != torch.bfloat16:
        return a @ b
    out = a.new_empty(*a.shape[:2], b.shape[2])
    for matrices in zip(a, b, out, strict=True):
        torch.mm(*matrices[:2], out=matrices[2])
    return out


def piecewise_shares(query: Tensor, key: Tensor, spans: Spans, softmax: Softmax = PLAIN) -> Tensor:
    """As `attention_shares`: the weights of `piecewise_attention`, averaged over heads, fp32 `(B, Q, T)`."""
    groups, found = key.shape[1], torch.zeros(*spans.first.shape, key.shape[2])
    shared = query.shape[1] // groups
    scaled = (query * softmax.scale_for(query.shape[-1])).unflatten(1, (groups, shared))
    for request, pieces in enumerate(pieces_of(spans, shared)):
        for piece in pieces:
            into = found[request, piece.rows, piece.keys]
            for group in range(groups):
                q, keys = scaled[request, group, None, :, piece.rows], key[request, group, None, piece.keys]
                own = softmax.of_heads(slice(group * shared, (group + 1) * shared))
                weights = _softmax(_scores(q, keys, piece, softmax.softcap).float(), q, own)
                into += weights.unflatten(1, q.shape[1:3])[0].sum(0)
            if piece.blind is not None:
                into.masked_fill_(piece.blind[:, None], 0)
    return found / query.shape[1]
