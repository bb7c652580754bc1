"""Scores of key blocks for a query: the reference, which is also the CPU path."""

from __future__ import annotations

import math

from torch import Tensor


def block_scores(query: Tensor, mean: Tensor) -> Tensor:
    """`s_b = q . mean key of b`, averaged over heads: query `(L, H, D)`, mean `(L, B, G, D)` -> fp32 `(L, B)`.

    Consecutive query heads share a key head (H = G * rep); both sides stand in one rotary frame. The division by
    H * sqrt(D) only fixes the scale, so that layers and models compare.
    """
    layers, heads, dim = query.shape
    groups = mean.shape[2]
    grouped = query.float().view(layers, groups, heads // groups, dim).sum(2)
    scores = (mean.float() * grouped[:, None]).sum((2, 3))
    return scores / (heads * math.sqrt(dim))
