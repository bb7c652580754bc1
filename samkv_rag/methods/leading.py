"""A first chunk that is stored as the prompt computes it: it is left out of what is computed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samkv_rag.methods.picked import Picked, best_of
from samkv_rag.methods.run import Run
from samkv_rag.types import PromptPlan


def exact_tokens(plan: PromptPlan, sink_prefix: Sequence[int]) -> int:
    """How many chunk tokens, from the first on, are stored as a prefill of the plan would make them: the first chunk's,
    where nothing stands before it but what chunks are ingested behind. (Rounded as the store rounds.)"""
    exact = plan.chunks and plan.before_chunks == tuple(sink_prefix)
    return len(plan.chunks[0].token_ids) if exact else 0


def computed_and_stored(run: Run, again: Picked, value: Tensor) -> tuple[Picked, Picked | None]:
    """What is computed of the tokens `again`, and what is seen with it as it is stored: of a first chunk that is exact,
    those that come first among `again`, and by their `value` `(T,)`, of all T. It gets as many of the tokens as falls
    to it by its length, so that how many are computed is known without asking."""
    lengthwise, total = run.adapter.rotary.depends_on_length, len(value)
    exact = 0 if lengthwise else exact_tokens(run.plan, run.adapter.sink_prefix)
    if not exact:
        return again, None
    with run.stage("select"):
        first, count = torch.arange(total, device=value.device) < exact, again.count * exact // total
        value = value + again.marks * (value.max() - value.min() + 1)
        others = best_of(Picked(~first, total - exact), value, again.count - count)
        return others, best_of(Picked(first, exact), value, count)
