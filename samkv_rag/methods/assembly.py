"""The caches of one prompt: laid out, filled from the store, and handed on from one pass to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from samkv_kernels.sending import sent
from samkv_rag.methods.costs import Costs
from samkv_rag.methods.entries import Entries, blocks_of
from samkv_rag.methods.layout import Ground, Layout, beginning
from samkv_rag.methods.picked import Picked
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.beginnings import UNKNOWN
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.filling import Part
from samkv_rag.types import BLOCK, PromptPlan, Selection


@dataclass(frozen=True, slots=True)
class Held:
    """The cache of a pass over the prompt's tokens at `positions` up to its end, with the layers that it ran: stored
    entries unchanged, and at the glue entries that will be computed again."""

    positions: Tensor
    cache: SlotCache


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a cache needs from the store: `blocks` of every chunk; for every slot its row among its chunk's (`rows`; -1:
    none); and the `runs` of neighbouring slots, (first, count), that hold chunks' tokens."""

    blocks: Sequence[Sequence[int]]
    rows: Tensor
    runs: Sequence[tuple[int, int]]


class Assembly:
    """Builds the caches that passes run over, each with `room` for what is generated. `blocks`: how many each chunk has
    in the store."""

    def __init__(self, plan: PromptPlan, adapter: ModelAdapter, entries: Entries, costs: Costs, room: int) -> None:
        self._beginning = () if adapter.rotary.depends_on_length else beginning(plan)
        self._head = adapter.beginnings.head_of(self._beginning)
        self._plan, self.ground = plan, Ground(plan, adapter.device, self._head.count)
        self.blocks = [-(-len(chunk.token_ids) // BLOCK) for chunk in plan.chunks]
        self._adapter = adapter
        self._entries = entries
        self._costs = costs
        self._room = room
        self._held: Held | None = None
        self._all_wanted = False
        self._known: tuple[Layout, Wanted] | None = None

    @cached_property
    def everything(self) -> tuple[Tensor, ...]:
        """All tokens of every chunk."""
        return Selection.all_of(self._plan).kept

    @cached_property
    def _whole(self) -> Layout:
        return self.ground.layout(self.everything)

    def layout(self, kept: Sequence[Tensor], stop: int | None = None) -> Layout:
        """Glue and the `kept` tokens of every chunk, in prompt order, up to position `stop`."""
        return self._whole if kept is self.everything and stop is None else self.ground.layout(kept, stop)

    def assemble(
        self, kept: Sequence[Tensor], layout: Layout, layers: range | None = None,
        replaced: Picked | None = None,
    ) -> SlotCache:  # fmt: skip
        """A cache of the layout's tokens at their true positions: chunk tokens from the store, the head from what is
        known, glue still empty.

        It has the consecutive `layers`, by default all. The chunk tokens `replaced` are about to be computed and
        overwritten before anything reads them: they are not loaded, and stay empty too.
        """
        with self._costs.stage("load"):
            wanted = self._wanted_of(len(kept), layout, replaced)
            steps = self._entries.steps(self._adapter.shape.cached(layers))
            self._ask(wanted.blocks, steps)
            loading = partial(self._costs.stage, "load")
            parts = partial(self._parts, wanted)
            cache = self._adapter.assemble(parts, layout.positions, self._room, steps, loading, self._head)
            self._costs.held(cache.nbytes)
            return cache

    def expect(self, *runs: range) -> None:
        """Have all entries read in the background, where reading takes time, one of the `runs` of layers after another:
        all will be needed."""
        self._all_wanted = True
        for layers in runs:
            self._ask([range(count) for count in self.blocks], self._entries.steps(self._adapter.shape.cached(layers)))

    def _all_filled(self) -> bool:
        """Whether what is replaced is filled, too: where all entries are needed and a GPU runs on without the host. To
        leave something out the host would have to wait for what was picked there."""
        return self._all_wanted and self._runs_apart()

    def _runs_apart(self) -> bool:
        """Whether the model runs where the host need not wait for it."""
        return self._adapter.device.type == "cuda"

    def _ask(self, blocks: Sequence[Sequence[int]], steps: Iterable[range]) -> None:
        for step in steps:
            for index, own in enumerate(blocks):
                self._entries.ask(index, own, step)

    def _parts(self, wanted: Wanted, layers: range) -> Iterator[Part]:
        """What each chunk contributes to the `layers` of a cache."""
        for index, (start, count) in enumerate(wanted.runs):
            if wanted.blocks[index]:
                stored = self._entries.blocks(index, wanted.blocks[index], layers)
                yield Part(start, stored, wanted.rows[start : start + count])

    def _wanted_of(self, chunks: int, layout: Layout, replaced: Picked | None) -> Wanted:
        """What a cache of the layout needs: the same for further layers as for the first ones."""
        if replaced is not None:
            return self._wanted(chunks, layout, replaced)
        if self._known is None or self._known[0] is not layout:
            self._known = layout, self._wanted(chunks, layout, None)
        return self._known[1]

    def _wanted(self, chunks: int, layout: Layout, replaced: Picked | None) -> Wanted:
        slots = layout.owned
        if replaced is not None:
            slots = slots[~self.ground.found(replaced)[layout.positions[slots]]]
        owner = layout.owner[slots]
        rows = layout.positions[slots] - self.ground.starts[owner]
        if len(slots) == self._plan.chunk_tokens:  # all blocks of all chunks
            blocks = [list(range(count)) for count in self.blocks]
        else:
            blocks, rows = blocks_of(owner, rows, chunks)
        spread = torch.full((len(layout.owner),), -1).index_copy_(0, slots, rows)
        return Wanted(blocks, sent(spread, self._adapter.device), layout.runs(chunks))

    def finish(self, cache: SlotCache) -> SlotCache:
        """A prepared cache, in memory of its own; what the prompt begins with is kept for other prompts."""
        cache = self._adapter.release(cache)
        self._adapter.beginnings.learn(self._beginning, cache)
        return cache

    def hold(self, layout: Layout, cache: SlotCache) -> None:
        """Keep the `cache` of a pass that went to the prompt's end, for a later pass to start from."""
        self._held = Held(layout.positions, cache)

    def release(self) -> None:
        """Forget the held cache and all that is known."""
        self._held, self._known, self._head = None, None, UNKNOWN

    def holds(self, layout: Layout) -> bool:
        """True if an earlier pass has left a cache with all tokens of the layout, its glue computed."""
        held = self._held
        if held is None or held.positions is layout.positions:
            return held is not None
        at = torch.searchsorted(held.positions, layout.positions).clamp_(max=len(held.positions) - 1)
        return torch.equal(held.positions[at], layout.positions)

    def completed(
        self, kept: Sequence[Tensor], layout: Layout, replaced: Picked | None, layers: range | None = None
    ) -> SlotCache:  # fmt: skip
        """A cache of the `layout` with `layers` (the first ones; by default all): what an earlier pass has left of it,
        and the rest from the store, except the chunk tokens `replaced`."""
        held, self._held = self._held if self.holds(layout) else None, None
        replaced = None if self._all_filled() else replaced
        layers = self._adapter.shape.cached(layers)
        if held is None:
            return self.assemble(kept, layout, layers, replaced)
        cache = held.cache
        if len(layout.positions) < len(held.positions):
            cache.keep(torch.searchsorted(held.positions, layout.positions))
        if len(cache.slot_layers) < layers.stop:
            cache.deepen(self.assemble(kept, layout, range(len(cache.slot_layers), layers.stop), replaced))
        self._costs.held(cache.nbytes)
        return cache
