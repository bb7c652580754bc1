"""InfoFlow KV: all entries kept; the norm of the question's attention on a band of layers decides what is recomputed.

"InfoFlow KV", ICML 2026: per key sqrt(sum over question tokens of (mean over heads of attention)^2), late layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.errors import SamKVError
from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.prophetkv import top_tokens
from samkv_rag.methods.run import Run
from samkv_rag.options import Options, Share


@dataclass(frozen=True)
class InfoFlow(Options):
    """Recomputes `share` of all chunk tokens. `band`: the layers whose attention is used, as shares of the depth (the
    published setting is layers 22 to 25 of 32)."""

    share: Share = 0.15
    band: tuple[Share, Share] = (0.6875, 0.8125)

    name = "infoflow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.band[0] > self.band[1]:
            raise SamKVError("infoflow: band is the lower end and the upper, such as (0.6875, 0.8125).")

    def prepare(self, run: Run) -> Prepared:
        kept = tuple(torch.arange(length) for length in run.lengths)
        depth = run.adapter.shape.layers
        first = min(int(self.band[0] * depth), depth - 1)
        layers = range(first, max(first + 1, round(self.band[1] * depth)))
        maps, columns = run.question_attention(kept, layers)
        return run.recompute(top_tokens(kept, maps.square().sum(1).sqrt().mean(0).cpu(), columns, self.share))
