"""A pass whose upper layers look at less: what is recomputed sees there only what is recomputed with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.softmax import Softmax
from samkv_rag.model.attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class Narrow:
    """From `layer` on, the first `rows` queries of a pass see only one another, not what else the cache holds. The
    other queries see everything on every layer."""

    layer: int
    rows: int


class NarrowedPlan(AttentionPlan):
    """A plan with a `narrow`; the observer is shown every layer as if it were wide."""

    def __init__(self, plan: AttentionPlan, narrow: Narrow) -> None:
        if plan.slots is None:
            raise ValueError("a pass over everything in the cache has nothing to leave out")
        super().__init__(plan.positions, plan.slots, plan.observer, plan.last_layer, plan.backend)
        own, others = plan.slots[: narrow.rows], plan.slots[narrow.rows :]
        self._narrow, self._own = narrow, own
        self._inner = AttentionPlan(plan.positions[own], backend=plan.backend)
        self._outer = AttentionPlan(plan.positions, others, backend=plan.backend)

    def apart(self, layer: int) -> int:
        return 0 if layer < self._narrow.layer else self._narrow.rows

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention of one layer: of all queries together below `narrow.layer`, of the two kinds apart above."""
        rows, own = self.apart(layer), self._own
        if not rows:
            return super().attended(layer, query, key, value, softmax, window, shares)
        kept = key.index_select(2, own), value.index_select(2, own)
        inner = self._inner.attended(layer, query[:, :, :rows], *kept, softmax, window)
        outer = self._outer.attended(layer, query[:, :, rows:], key, value, softmax, window, shares)
        return torch.cat([inner, outer], 2)
