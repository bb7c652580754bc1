"""ProphetKV: all entries kept; the tokens that the question attends to, averaged over all layers, are recomputed.

"ProphetKV", ICML 2026 (two stages: attention of the question over the reused caches per layer, then its mean).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.methods.picked import best_tokens
from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.options import Options, Share, portion
from samkv_rag.types import Selection


@dataclass(frozen=True)
class ProphetKV(Options):
    """Recomputes `share` of all chunk tokens, on every layer."""

    share: Share = 0.15

    name = "prophetkv"

    def prepare(self, run: Run) -> Prepared:
        kept = tuple(torch.arange(length) for length in run.lengths)
        maps, columns = run.question_attention(kept, range(run.adapter.shape.layers))
        return run.recompute(top_tokens(kept, maps.mean((0, 1)).cpu(), columns, self.share))


def top_tokens(kept: tuple[Tensor, ...], value: Tensor, columns: list[Tensor], share: float) -> Selection:
    """Everything kept, and the `share` of the tokens with the highest `value` `(T,)` recomputed."""
    best = best_tokens([value[column] for column in columns], portion(share, len(value)))
    return Selection(kept, tuple(tokens[part] for tokens, part in zip(kept, best, strict=True)))
