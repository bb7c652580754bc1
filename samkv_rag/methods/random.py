"""Control: SamKV's budget spent on random blocks. What selection by score must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.methods.selection import ChunkScores, anchor_masks, choose
from samkv_rag.options import BlockSize, Count, Options, Seed, Share
from samkv_rag.types import Selection


@dataclass(frozen=True)
class Random(Options):
    """`keep` of the chunk tokens: `initial` and `local` ones at each chunk's ends, then blocks drawn from `seed`; all
    recomputed."""

    keep: Share = 0.15
    block: BlockSize = 16
    initial: Count = 8
    local: Count = 8
    seed: Seed = 0

    name = "random"

    def prepare(self, run: Run) -> Prepared:
        """The same draw for the same seed and chunk lengths."""
        generator = torch.Generator().manual_seed(self.seed)
        budget = run.budget(self.keep)
        anchors = anchor_masks(run.lengths, self.initial, self.local, budget // 2)
        scores = [
            ChunkScores(torch.rand(1, -(-length // self.block), generator=generator), torch.zeros(0, dtype=torch.bool))
            for length in run.lengths
        ]
        everyone = [1.0] * len(scores)
        choice = choose(scores, anchors, budget, self.block, shares=everyone, per_chunk=False, fill=True)
        kept = tuple(mask.nonzero()[:, 0] for mask in choice.kept)
        return run.recompute(Selection(kept, kept))
