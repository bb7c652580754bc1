"""A first chunk that is stored as the prompt would compute it is not recomputed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samkv_rag.methods.picked import Picked, best_of
from samkv_rag.methods.run import Run
from samkv_rag.types import PromptPlan


def exact_tokens(plan: PromptPlan, sink_prefix: Sequence[int]) -> int:
    """How many chunk tokens, from the first on, are stored as a prefill of the plan would compute them: the first
    chunk's, if what precedes it is what precedes chunks at ingestion. (Rounded as the store rounds.)"""
    exact = plan.chunks and plan.before_chunks == tuple(sink_prefix)
    return len(plan.chunks[0].token_ids) if exact else 0


def computed_and_stored(run: Run, again: Picked, value: Tensor) -> tuple[Picked, Picked | None]:
    """What is recomputed of the tokens `again`, and what of an exact first chunk is attended to with it as stored: of
    all T tokens first those of `again`, then the best by their `value` `(T,)`. That chunk's number of tokens is in
    proportion to its length, so that the number computed is known without waiting."""
    lengthwise, total = run.adapter.rotary.depends_on_length, len(value)
    exact = 0 if lengthwise else exact_tokens(run.plan, run.adapter.sink_prefix)
    if not exact:
        return again, None
    with run.stage("select"):
        first, count = torch.arange(total, device=value.device) < exact, again.count * exact // total
        value = value + again.marks * (value.max() - value.min() + 1)
        others = best_of(Picked(~first, total - exact), value, again.count - count)
        return others, best_of(Picked(first, exact), value, count)
