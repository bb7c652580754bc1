"""One question's look on every layer: what each layer would choose, and what a full prefill attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from samkv_rag.engine import SamKVEngine
from samkv_rag.methods import Run
from samkv_rag.methods.scoring import pass_scores
from samkv_rag.methods.selection import ChunkScores, choose
from samkv_rag.options import portion
from samkv_rag.types import BLOCK, PromptPlan


@dataclass(frozen=True)
class Looked:
    """A question's block scores on all L layers, and the reference: a cheap look, from which to guess which sets of
    layers are worth trying.

    `reference` per chunk fp32 `(n_i,)`: the attention that each chunk token gets from the rows that produce full
    prefill's own answer (the last prompt token and the answer's, teacher-forced) in a prefill of everything, the mean
    over all layers, heads and rows. `budget` is how many chunk tokens may be kept.
    """

    scores: list[ChunkScores]
    reference: list[Tensor]
    budget: int

    def kept(self, layers: Sequence[int]) -> list[Tensor]:
        """Bool `(n_i,)` per chunk: what `SamKV(settle="before")` keeps with these selection layers."""
        return self._best([ChunkScores(chunk.blocks[list(layers)], chunk.anchor) for chunk in self.scores])

    def agreement(self, layers: Sequence[int]) -> float:
        """Reference attention on what is kept / on the best blocks of as many tokens: 1 is agreement."""
        return self._mass(self.kept(layers)) / max(self._attainable, 1e-30)

    @cached_property
    def _attainable(self) -> float:
        sums = [torch.stack([part.sum() for part in chunk.split(BLOCK)])[None] for chunk in self.reference]
        return self._mass(self._best([ChunkScores(own, c.anchor) for own, c in zip(sums, self.scores, strict=True)]))

    def _best(self, scores: Sequence[ChunkScores]) -> list[Tensor]:
        nothing = [torch.zeros(len(chunk), dtype=torch.bool) for chunk in self.reference]
        everyone = [1.0] * len(scores)
        return choose(scores, nothing, self.budget, BLOCK, shares=everyone, per_chunk=False, fill=True).kept

    def _mass(self, kept: Sequence[Tensor]) -> float:
        return sum(float(own[mask].sum()) for own, mask in zip(self.reference, kept, strict=True))


def look(engine: SamKVEngine, plan: PromptPlan, answer: Sequence[int], keep: float) -> Looked:
    """Run the plan's question on every layer, `keep` of its chunk tokens to be kept; its chunks must be stored.
    `answer` is full prefill's own, as token ids."""
    run = Run(plan, engine.adapter, engine.store)
    scores = pass_scores(run, tuple(range(engine.adapter.shape.layers)), BLOCK, 0, 0)
    return Looked(scores, _reference(engine, plan, tuple(answer)), portion(keep, plan.chunk_tokens))


def _reference(engine: SamKVEngine, plan: PromptPlan, answer: tuple[int, ...]) -> list[Tensor]:
    adapter, last = engine.adapter, plan.segments[-1]
    written = replace(plan, segments=(*plan.segments[:-1], replace(last, token_ids=last.token_ids + answer)))
    run = Run(written, adapter, engine.store)
    everything = [torch.arange(length) for length in run.lengths]
    layout, layers = run.caches.layout(everything), range(adapter.shape.layers)
    cache = run.caches.assemble(everything, layout, replaced=run.caches.ground.picked(everything))
    rows = torch.arange(plan.n_tokens - 1, max(plan.n_tokens, plan.n_tokens + len(answer) - 1))
    maps = adapter.question_attention(layout.ids, torch.arange(len(layout.ids)), rows, cache, layers)
    mean = maps.mean((0, 1)).cpu()[layout.owned]
    return list(mean.split(run.lengths))
