"""Which rows of a pass over a prompt ask, lead up to the answer, or are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from samkv_rag.methods.layout import Layout
from samkv_rag.types import PromptPlan


def _chunks_end(plan: PromptPlan) -> int:
    return max((chunk.stop for chunk in plan.chunks), default=0)


def asking_rows(plan: PromptPlan, at: Tensor) -> Tensor:
    """Rows of a pass at positions `at` `(Q,)` that ask: the question's, and those of the glue behind it and behind all
    chunks."""
    question = plan.question
    inside = (at >= question.start) & (at < question.start + len(question.token_ids))
    return (inside | (at >= max(question.start, _chunks_end(plan)))).nonzero()[:, 0]


def answering_rows(plan: PromptPlan, at: Tensor) -> Tensor:
    """Rows of a pass at positions `at` `(Q,)` that lead up to the answer: those from the question on that stand behind
    all chunks, or else the last."""
    start = plan.question.start if plan.question.in_prompt else 0
    return (at >= min(max(start, _chunks_end(plan)), int(at[-1]))).nonzero()[:, 0]


def stored_rows(row: Tensor, layout: Layout, slots: Tensor) -> Tensor:
    """Bool `(Q,)`: which of the rows at `slots` a layer stores, by what `row` says of all kept chunk tokens."""
    stored = torch.ones(len(layout.ids), dtype=torch.bool)
    stored[layout.owned] = row
    return stored[slots]
