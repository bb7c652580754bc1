"""A pass whose upper layers attend to less: recomputed tokens attend to one another, and to what is closest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.softmax import Softmax
from samkv_rag.model.attention import AttentionPlan


@dataclass(frozen=True, slots=True)
class Narrow:
    """From `layer` on, the first `rows` queries of a pass attend only to the slots `seen`, which are sorted and include
    their own (by default these alone), not to the rest of the cache. The other queries attend to everything on every
    layer."""

    layer: int
    rows: int
    seen: Tensor | None = None

    @classmethod
    def of(cls, layer: int, own: Tensor, positions: Tensor, share: float, also: Tensor) -> Narrow:
        """The queries at slots `own` of a cache of tokens at `positions` `(T,)`, both sorted, attend to one another, to
        the slots `also`, which are none of theirs, and to the `share` of all others that most closely precedes any of
        them; among equals, the first. The number of these is known without asking the device."""
        others = int(share * (len(positions) - len(own) - len(also)) + 1e-9)
        if not len(own) or not len(also) + others:
            return cls(layer, len(own))
        own_at = positions[own]
        ahead = own_at[torch.searchsorted(own_at, positions).clamp_(max=len(own) - 1)] - positions
        ahead = torch.where(ahead < 0, positions[-1], ahead)  # none can attend to what follows them all
        ahead[also] = -1
        return cls(layer, len(own), ahead.argsort(stable=True)[: len(own) + len(also) + others].sort().values)

    def sees(self, slots: Tensor) -> Tensor:
        """The slots that the narrowed queries of a pass over `slots` attend to, sorted."""
        return slots[: self.rows] if self.seen is None else self.seen.to(slots.device, non_blocking=slots.is_cuda)


class NarrowedPlan(AttentionPlan):
    """A plan with a `narrow`; the observer is given every layer as if it were wide."""

    def __init__(self, plan: AttentionPlan, narrow: Narrow) -> None:
        if plan.slots is None:
            raise ValueError("a pass over everything in the cache has nothing to leave out")
        super().__init__(plan.positions, plan.slots, plan.observer, plan.last_layer, plan.backend)
        own, others = plan.slots[: narrow.rows], plan.slots[narrow.rows :]
        self._narrow, self._seen, among = narrow, narrow.sees(plan.slots), None
        if narrow.seen is not None:
            # The rows that a pass is padded with come after all slots: they attend to what the last one does.
            among = torch.searchsorted(self._seen, own).clamp_(max=len(self._seen) - 1)
        self._inner = AttentionPlan(plan.positions[self._seen], among, backend=plan.backend)
        self._outer = AttentionPlan(plan.positions, others, backend=plan.backend)

    def apart(self, layer: int) -> int:
        return 0 if layer < self._narrow.layer else self._narrow.rows

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention of one layer: of all queries together below `narrow.layer`, else of the two kinds apart."""
        rows, seen = self.apart(layer), self._seen
        if not rows:
            return super().attended(layer, query, key, value, softmax, window, shares)
        kept = key.index_select(2, seen), value.index_select(2, seen)
        inner = self._inner.attended(layer, query[:, :, :rows], *kept, softmax, window)
        outer = self._outer.attended(layer, query[:, :, rows:], key, value, softmax, window, shares)
        # A query's heads side by side, as the model joins them: they are copied once.
        return torch.cat([inner.transpose(1, 2), outer.transpose(1, 2)], 1).transpose(1, 2)
