"""One question, looked at on every layer: what each layer would choose, and what a full prefill attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from samkv_rag.engine import SamKVEngine
from samkv_rag.eval.items import Item
from samkv_rag.methods import Run
from samkv_rag.methods.scoring import pass_scores
from samkv_rag.methods.selection import ChunkScores, choose
from samkv_rag.types import BLOCK, PromptPlan

Spot = tuple[int, int, int]


@dataclass(frozen=True)
class Looked:
    """A question's block scores on all L layers, the reference, and where its gold answers stand.

    `reference` per chunk fp32 `(n_i,)`: the attention that each chunk token gets from the rows that write the answer
    (the last prompt token and the gold answer's, teacher-forced) in a prefill of everything, the mean over all layers,
    heads and rows. `spots` are (chunk, first token, token behind the last) of the answers' occurrences in the chunks.
    """

    scores: list[ChunkScores]
    reference: list[Tensor]
    spots: tuple[Spot, ...]
    budget: int

    def kept(self, layers: Sequence[int]) -> list[Tensor]:
        """Bool `(n_i,)` per chunk: what `SamKV(settle="before")` keeps with these selection layers."""
        return self._best([ChunkScores(chunk.blocks[list(layers)], chunk.anchor) for chunk in self.scores])

    def agreement(self, layers: Sequence[int]) -> float:
        """Reference attention on what is kept / on the best blocks there are for as many tokens: 1 is agreement."""
        return self._mass(self.kept(layers)) / max(self._attainable, 1e-30)

    def answers(self, layers: Sequence[int]) -> float | None:
        """Share of the answers' occurrences that are kept whole; None where no answer stands in the chunks."""
        kept = self.kept(layers)
        found = [bool(kept[chunk][start:stop].all()) for chunk, start, stop in self.spots]
        return sum(found) / len(found) if found else None

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


def look(engine: SamKVEngine, item: Item, keep: float) -> Looked:
    """Ask `item` on every layer, `keep` of its chunk tokens to be kept; its chunks must be stored."""
    plan = engine.plan_question(item.question, item.chunks)
    run = Run(plan, engine.adapter, engine.store)
    scores = pass_scores(run, tuple(range(engine.adapter.shape.layers)), BLOCK, 0, 0)
    answers = [ids for text in item.answers for ids in _spellings(engine, text)]
    reference = _reference(engine, plan, answers[-1] if answers else ())
    return Looked(scores, reference, _spots(plan, answers), int(keep * plan.chunk_tokens + 1e-9))


def _spellings(engine: SamKVEngine, text: str) -> list[tuple[int, ...]]:
    """The answer's ids at the head of a text and behind a blank; the latter is how an answer is written."""
    encode = engine.tokenizer
    both = (encode(spelling, add_special_tokens=False)["input_ids"] for spelling in (text, f" {text}"))
    return [tuple(ids) for ids in both if ids]


def _spots(plan: PromptPlan, answers: Sequence[tuple[int, ...]]) -> tuple[Spot, ...]:
    found = {
        (index, start, start + len(answer))
        for index, chunk in enumerate(plan.chunks)
        for answer in answers
        for start in range(len(chunk.token_ids) - len(answer) + 1)
        if chunk.token_ids[start : start + len(answer)] == answer
    }
    return tuple(sorted(found))


def _reference(engine: SamKVEngine, plan: PromptPlan, answer: tuple[int, ...]) -> list[Tensor]:
    adapter, last = engine.adapter, plan.segments[-1]
    written = replace(plan, segments=(*plan.segments[:-1], replace(last, token_ids=last.token_ids + answer)))
    run = Run(written, adapter, engine.store)
    everything = [torch.arange(length) for length in run.lengths]
    layout, layers = run.caches.layout(everything), range(adapter.shape.layers)
    cache = run.caches.assemble(everything, layout, replaced=everything)
    rows = torch.arange(plan.n_tokens - 1, max(plan.n_tokens, plan.n_tokens + len(answer) - 1))
    maps = adapter.question_attention(layout.ids, torch.arange(len(layout.ids)), rows, cache, layers)
    mean = maps.mean((0, 1)).cpu()[layout.owned]
    return list(mean.split(run.lengths))
