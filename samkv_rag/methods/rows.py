"""Which rows of a pass over a prompt ask, lead up to the answer, or are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.methods.layout import Layout
from samkv_rag.types import PromptPlan


def _chunks_end(plan: PromptPlan) -> int:
    return max((chunk.stop for chunk in plan.chunks), default=0)


def asking_rows(plan: PromptPlan, at: Tensor) -> Tensor:
    """Rows of a pass at positions `at` `(Q,)` that ask: the question's, and those of the glue after it and after all
    chunks."""
    question = plan.question
    inside = (at >= question.start) & (at < question.start + len(question.token_ids))
    return (inside | (at >= max(question.start, _chunks_end(plan)))).nonzero()[:, 0]


def answering(plan: PromptPlan) -> int:
    """How many tokens at a plan's end lead up to the answer: those from the question on that follow all chunks, or else
    the last one."""
    start = plan.question.start if plan.question.in_prompt else 0
    return plan.n_tokens - min(max(start, _chunks_end(plan)), plan.n_tokens - 1)


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a pass computes of a layout: tokens `ids` at its `slots` `(Q,)`, sorted; which of them belong to chunks
    (bool `(Q,)`), and how many do."""

    slots: Tensor
    ids: Tensor
    chunked: Tensor
    of_chunks: int

    @classmethod
    def of(cls, layout: Layout, slots: Tensor) -> Fresh:
        """The tokens at `slots`, on the host."""
        chunked = layout.owner[slots] >= 0
        return cls(slots, layout.ids[slots], chunked, int(chunked.sum()))

    def last(self, count: int) -> Fresh:
        """The last `count` of them, all of them glue."""
        return Fresh(self.slots[-count:], self.ids[-count:], self.chunked[-count:], 0)

    def __len__(self) -> int:
        return len(self.slots)


def stored_rows(row: Tensor, layout: Layout, slots: Tensor) -> Tensor:
    """Bool `(Q,)`: which of the rows at `slots` a layer stores, as `row` says for all kept chunk tokens."""
    stored = torch.ones(len(layout.ids), dtype=torch.bool)
    stored[layout.owned] = row
    return stored[slots]
