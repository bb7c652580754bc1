"""A pass whose upper layers attend to less: recomputed tokens attend to one another, and to what is closest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.sending import few
from samkv_kernels.softmax import Softmax
from samkv_rag.model.absorbed import AbsorbedPlan, Latents
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.cache import Entries, SlotCache
from samkv_rag.options import portion


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
        others = portion(share, len(positions) - len(own) - len(also))
        if not len(own) or not len(also) + others:
            return cls(layer, len(own))
        own_at = positions[own]
        ahead = own_at[torch.searchsorted(own_at, positions).clamp_(max=len(own) - 1)] - positions
        ahead = torch.where(ahead < 0, positions[-1], ahead)  # none can attend to what follows them all
        ahead[also] = -1
        return cls(layer, len(own), ahead.argsort(stable=True)[: len(own) + len(also) + others].sort().values)

    def sees(self, slots: Tensor) -> Tensor:
        """The slots that the narrowed queries of a pass over `slots` attend to, sorted."""
        return slots[: self.rows] if self.seen is None else few(self.seen, slots.device)


class NarrowedPlan(AttentionPlan):
    """A plan with a `narrow`; on narrowed layers the observer is given the queries that attend to everything."""

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
        self._outer = AttentionPlan(
            plan.positions, others, plan.observer, plan.last_layer, plan.backend, before=narrow.rows
        )

    def narrowed(self, layer: int) -> bool:
        """Whether some of the queries attend only to some slots on this layer."""
        return layer >= self._narrow.layer

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of this pass: of all queries together below `narrow.layer`, else of the two kinds apart."""
        if not self.narrowed(layer):
            return super().attend(layer, query, key, value, softmax, window)
        self.seen.add(layer)
        rows = self._narrow.rows
        outer = self._outer.attend(layer, query[:, :, rows:], key, value, softmax, window)
        inner = self._inner.attended(layer, query[:, :, :rows], *self._of_seen(key, value), softmax, window)
        # A query's heads side by side, as the model joins them: they are copied once.
        return torch.cat([inner.transpose(1, 2), outer.transpose(1, 2)], 1).transpose(1, 2)

    def _of_seen(self, key: Tensor, value: Tensor) -> Entries:
        return key.index_select(2, self._seen), value.index_select(2, self._seen)


class NarrowedLatents(NarrowedPlan):
    """The same where `latents` are cached: on narrowed layers a model makes keys and values only of those that the
    narrowed queries attend to. The other queries, few, attend to the latents in the `cache` as they are."""

    def __init__(self, plan: AttentionPlan, narrow: Narrow, cache: SlotCache, latents: Latents) -> None:
        super().__init__(plan, narrow)
        self._outer = AbsorbedPlan.of(self._outer, cache, latents)

    def shown(self, layer: int) -> Tensor | None:
        """The slots that narrowed queries attend to."""
        return self._seen if self.narrowed(layer) else None

    def _of_seen(self, key: Tensor, value: Tensor) -> Entries:
        return key, value


def narrowed_plan(plan: AttentionPlan, narrow: Narrow, cache: SlotCache, latents: Latents | None) -> NarrowedPlan:
    """The plan of the same pass over `cache`, narrowed as suits what the model caches; `plan.slots` are given."""
    if latents is not None and plan.slots is not None:
        others = len(plan.slots) - narrow.rows
        if latents.pays(others, cache.get_seq_length(), len(narrow.sees(plan.slots))):
            return NarrowedLatents(plan, narrow, cache, latents)
    return NarrowedPlan(plan, narrow)
