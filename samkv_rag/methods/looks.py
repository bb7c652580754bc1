"""SamKV's first look at the chunks: how their blocks are scored before anything is recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samkv_rag.methods.run import Run
from samkv_rag.methods.scoring import attention_scores, chunk_scores, pass_scores, personalised, turned_to_chunks
from samkv_rag.methods.selection import ChunkScores, shortlist

Look = Literal["keys", "two_stage", "pooled", "mean", "bound"]


@dataclass(frozen=True)
class FirstLook:
    """One prompt's look on the selection `layers`, at blocks of `block` tokens, with `SamKV`'s options of the same
    names. A pass for summaries attends to the tokens `anchors` of every chunk; a shortlist has `candidates` tokens."""

    run: Run
    layers: tuple[int, ...]
    anchors: Sequence[Tensor]
    block: int
    initial: int
    local: int
    candidates: int
    bias: bool
    partner: Literal["query", "local"]
    frame: Literal["true", "adjacent"]

    def scores(self, look: Look) -> list[ChunkScores]:
        """The scores of every chunk's blocks by this look."""
        if look == "keys":
            return self._by_keys()
        if look == "two_stage":
            return self._by_keys() if self.candidates >= sum(self.run.lengths) else self._by_shortlist()
        return self._by_pooled_query() if look == "pooled" else self._by_summaries(look)

    def _by_keys(self, seen: Sequence[Tensor] | None = None) -> list[ChunkScores]:
        """By attention to the entries themselves, only of the tokens `seen` if they are given."""
        return pass_scores(self.run, self.layers, self.block, self.initial, self.local, seen)

    def _by_shortlist(self) -> list[ChunkScores]:
        """By attention to the entries of the blocks whose key bounds score best."""
        bounds = self._by_summaries("bound")
        return self._by_keys(shortlist(bounds, self.run.lengths, self.candidates, self.block))

    def _by_summaries(self, summary: str) -> list[ChunkScores]:
        """By attention to mean keys, or to the bounds of keys."""
        queries, positions = self.run.asking_pass(self._anchored, self.layers[-1])
        with self.run.stage("select"):
            return attention_scores(
                self.run, queries, positions, self.layers, self.block, self.initial, self.local,
                frame=self.frame, summary=summary,
            )  # fmt: skip

    def _by_pooled_query(self) -> list[ChunkScores]:
        """The paper's look: the pooled question query, personalised for every chunk, against its mean keys."""
        asking = self.run.question_pass(self._anchored, self.layers[-1])
        with self.run.stage("select"):
            queries = [self._personalised(stack, own.mean(2)) for stack, own in enumerate(asking)]
            turned = turned_to_chunks(self.run, queries, self.frame)
            return chunk_scores(self.run, turned, self.layers, self.block, self.initial, self.local)

    def _personalised(self, stack: int, generic: Tensor) -> Tensor:
        """Pooled question queries on a stack's layers `(L, H, D)`, personalised for each chunk: `(C, L, H, D)`."""
        chunks = range(len(self.run.lengths))
        if not self.bias:
            return generic.expand(len(chunks), *generic.shape)
        local = [self.run.local_query(index, stack)[: len(generic)] for index in chunks]
        return personalised(generic, torch.stack(local), self.partner)

    @property
    def _anchored(self) -> list[Tensor]:
        """Every chunk's anchor tokens, sorted."""
        return [mask.nonzero()[:, 0] for mask in self.anchors]
