"""Control: SamKV's budget spent on the two ends of every chunk, whatever the question."""

from __future__ import annotations

from dataclasses import dataclass

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.methods.selection import anchor_masks
from samkv_rag.options import Options, Share
from samkv_rag.types import Selection


@dataclass(frozen=True)
class AnchorsOnly(Options):
    """`keep` of the chunk tokens, shared evenly: half from each chunk's head, half from its tail; all recomputed."""

    keep: Share = 0.15

    name = "anchors_only"

    def prepare(self, run: Run) -> Prepared:
        longest = max(run.lengths)
        masks = anchor_masks(run.lengths, longest, longest, run.budget(self.keep))
        kept = tuple(mask.nonzero()[:, 0] for mask in masks)
        return run.recompute(Selection(kept, kept))
