"""Multi-InfLLM: the concatenated caches treated as one context, its blocks chosen by the question, none recomputed.

The paper's own baseline (SamKV, experiments) after InfLLM (Xiao et al., 2024): the whole context's first and last
tokens are kept, then the blocks whose keys score highest with the question's query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.run import Run
from samkv_rag.methods.scoring import check_block, chunk_scores, turned_to_chunks
from samkv_rag.methods.selection import anchor_masks, choose
from samkv_rag.options import BlockSize, Count, Options, Share
from samkv_rag.types import Selection


@dataclass(frozen=True)
class MultiInfLLM(Options):
    """Keeps `keep` of the chunk tokens, `initial` and `local` tokens of the whole context among them; `block` tokens
    per block, a multiple of 16."""

    keep: Share = 0.15
    block: BlockSize = 16
    initial: Count = 16
    local: Count = 32

    name = "multi_infllm"
    summaries = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(self.block)

    def prepare(self, run: Run) -> Prepared:
        """Choose blocks of the whole context by the pooled question query on all layers; reuse them as stored."""
        budget = run.budget(self.keep)
        whole = anchor_masks([sum(run.lengths)], self.initial, self.local, budget // 2)[0]
        anchors = list(torch.split(whole, run.lengths))
        last = run.adapter.shape.layers - 1
        generic = [own.mean(2) for own in run.question_pass([mask.nonzero()[:, 0] for mask in anchors], last)]
        with run.stage("select"):
            queries = turned_to_chunks(run, [own.expand(len(run.lengths), *own.shape) for own in generic])
            scores = chunk_scores(run, queries, tuple(range(last + 1)), self.block, 0, 0)
            everyone = [1.0] * len(scores)
            choice = choose(scores, anchors, budget, self.block, shares=everyone, per_chunk=False, fill=True)
            kept = tuple(mask.nonzero()[:, 0] for mask in choice.kept)
        nothing = tuple(tokens[:0] for tokens in kept)
        return run.recompute(Selection(kept, nothing, ranking=choice.ranking(self.block)))
