"""Attention over kept tokens: every query attends to an interval of a compact cache, its slots sorted by position.

What is causal in original positions, gaps and all, is then an interval of compact indices, and so is a sliding window:
`Spans` holds them, made once for all layers. Requests of different lengths need nothing more: if they are padded, the
padding rows attend to nothing; if they are packed one after another (B = 1), each one's spans are within its own part.
Consecutive query heads share a key head (H = G * rep).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from samkv_kernels.backend import Backend
from samkv_kernels.softmax import PLAIN, Softmax


@dataclass(frozen=True, slots=True)
class Spans:
    """The keys each query attends to: from `first` to `last`, int32 `(B, Q)`; none where `last` is below `first`."""

    first: Tensor
    last: Tensor

    @classmethod
    def causal(cls, query_at: Tensor, key_at: Tensor, window: int | None = None) -> Spans:
        """Queries at positions `(B, Q)` over keys at sorted positions `(B, T)`: those not after them and, with a
        `window`, less than that before them."""
        after = torch.searchsorted(key_at.contiguous(), query_at.contiguous(), right=True)
        if window is None:
            return cls(torch.zeros_like(after, dtype=torch.int32), (after - 1).int())
        first = torch.searchsorted(key_at.contiguous(), (query_at - window).contiguous(), right=True)
        return cls(first.int(), (after - 1).int())

    def rows(self, index: Tensor) -> Spans:
        """The spans of some queries."""
        return Spans(self.first[:, index], self.last[:, index])

    def mask(self, keys: int) -> Tensor:
        """Bool `(B, Q, keys)`: True where a query attends to a key."""
        at = torch.arange(keys, device=self.first.device)
        return (at >= self.first[..., None]) & (at <= self.last[..., None])


def sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, softmax: Softmax = PLAIN, backend: Backend = "torch"
) -> Tensor:
    """`softmax(q . k) v` over each query's span, zeros where it is empty; `softmax` says how scores become weights.

    `query` `(B, H, Q, D)`, `key` `(B, G, T, D)`, `value` `(B, G, T, E)` -> `(B, H, Q, E)` in the query's dtype.
    """
    _check(query, key, spans)
    if backend == "triton":
        from samkv_kernels.jit.sparse_attention import attend

        fixed = replace(softmax, scale=softmax.scale_for(key.shape[3]))
        return attend(*equally_wide(query, key, value), spans, fixed)[..., : value.shape[3]]
    return masked_attention(query, key, value, spans.mask(key.shape[2])[:, None], softmax)


def equally_wide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that are less wide than others filled with zeros, which add nothing to any product."""
    wide = max(key.shape[3], value.shape[3])
    filled = [x if x.shape[3] == wide else pad(x, (0, wide - x.shape[3])) for x in (query, key, value)]
    return filled[0], filled[1], filled[2]


def attention_shares(
    query: Tensor, key: Tensor, spans: Spans, softmax: Softmax = PLAIN, backend: Backend = "torch"
) -> Tensor:
    """The weights of `sparse_attention`, averaged over heads, fp32 `(B, Q, T)`: what a question finds in ALL keys."""
    _check(query, key, spans)
    if backend == "triton":
        from samkv_kernels.jit.sparse_attention import shares

        return shares(query, key, spans, softmax)
    mask, groups = spans.mask(key.shape[2])[:, None], key.shape[1]
    shared, found = query.shape[1] // groups, torch.zeros(mask.shape[0], *mask.shape[2:], device=query.device)
    for group in range(groups):  # one at a time, so that its scores stay in a processor's cache
        heads = slice(group * shared, (group + 1) * shared)
        found += _weights(query[:, heads], key[:, group : group + 1], mask, softmax.of_heads(heads)).sum(1)
    return found / query.shape[1]


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softmax: Softmax = PLAIN
) -> Tensor:
    """`sparse_attention` under a bool `mask` that broadcasts to `(B, H, Q, T)`, in fp32 throughout."""
    batch, heads, count, _ = query.shape
    groups, total = key.shape[1:3]
    weights = _weights(query, key, mask, softmax).view(batch, groups, heads // groups * count, total)
    return (weights @ value.float()).view(batch, heads, count, value.shape[3]).to(query.dtype)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, softmax: Softmax) -> Tensor:
    """fp32 `(B, H, Q, T)`; zeros for a query that attends to nothing."""
    batch, heads, count, dim = query.shape
    by_group = query.float().reshape(batch, key.shape[1], heads // key.shape[1] * count, dim)
    scale, softcap = softmax.scale_for(dim), softmax.softcap
    scores = (by_group * scale @ key.float().transpose(-1, -2)).view(batch, heads, count, key.shape[2])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        return softmax.weights(scores)
    weights = softmax.weights(scores.masked_fill_(~mask, float("-inf")))
    sees = mask.any(-1, keepdim=True)
    return weights if sees.all() else weights.masked_fill(~sees, 0)


def _check(query: Tensor, key: Tensor, spans: Spans) -> None:
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[1]} key heads evenly")
    if spans.first.shape[-1] != query.shape[2]:
        raise ValueError(f"{query.shape[2]} queries have spans for {spans.first.shape[-1]}")
