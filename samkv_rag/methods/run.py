"""What a method may do with one prompt, and what it cost: the operations between the methods and the code below."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from samkv_kernels.sending import few, sent
from samkv_rag.methods.assembly import Assembly
from samkv_rag.methods.costs import Costs, Pass, Stage
from samkv_rag.methods.entries import Entries
from samkv_rag.methods.layout import Layout, with_question
from samkv_rag.methods.picked import Picked, Settled, most_looked_at
from samkv_rag.methods.prepared import Prepared
from samkv_rag.methods.rows import Fresh, answering, asking_rows, stored_rows
from samkv_rag.methods.settling import LateSettling
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.blending import Blend
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.narrowed import Narrow
from samkv_rag.model.observers import AttentionMaps, MeanAttention, Observer
from samkv_rag.options import portion
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import ChunkSummary, PromptPlan, Selection


class Run:
    """One prompt under one method. Reads go through here, so that the report counts what really happened."""

    def __init__(
        self, plan: PromptPlan, adapter: ModelAdapter, store: ChunkKVStore, room: int = 0, min_kept_tokens: int = 0,
        model_fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.adapter = adapter
        self.store = store
        self.costs = Costs(adapter.device)
        self.entries = Entries(plan, adapter, store)
        self.caches = Assembly(plan, adapter, self.entries, self.costs, room + 1)
        self.model_fingerprint = model_fingerprint
        self.notes: tuple[str, ...] = ()
        self._min_kept_tokens = min_kept_tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens of every chunk in the prompt."""
        return [len(chunk.token_ids) for chunk in self.plan.chunks]

    def budget(self, keep: float) -> int:
        """How many chunk tokens to choose: the share `keep`, but at least the engine's minimum; a note says so."""
        total = sum(self.lengths)
        wanted, least = portion(keep, total), min(self._min_kept_tokens, total)
        if wanted < least:
            self.caches.ground.short = least == total
            why = f"{'all' if least == total else 'the minimum'} (min_kept_tokens={self._min_kept_tokens})"
            self.notes = (f"{least} tokens were chosen, {why}: keep alone would be {wanted}",)
        return max(wanted, least)

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """Charge the block's wall-clock time to a stage of the report."""
        return self.costs.stage(name)

    def release(self) -> None:
        """Forget everything but the costs: an answer may take its time."""
        self.entries.release()
        self.caches.release()

    # -- reading -----------------------------------------------------------------------------------------------

    def summaries(self, index: int) -> ChunkSummary:
        """The small part of chunk `index`: block summaries and local query."""
        known, new = self.entries.summary(index)
        self.costs.scored_bytes += known.nbytes if new else 0
        return known

    def local_query(self, index: int, stack: int = 0) -> Tensor:
        """The local query of chunk `index`, fp32 `(L, H, D)`, position-free, on the layers that attend to a stack."""
        return self.summaries(index).stacks[stack].local_query.to(self.adapter.device, torch.float32)

    def read_ahead(self, last_layer: int) -> None:
        """Have all entries read in the background, those up to `last_layer` first: for a method that needs them all."""
        self.caches.expect(range(last_layer + 1), range(last_layer + 1, self.adapter.shape.layers))

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Count the bytes of entries that the block uses as scored."""
        self.costs.scored_bytes -= self.entries.bytes_used
        yield
        self.costs.scored_bytes += self.entries.bytes_used

    # -- running the model -------------------------------------------------------------------------------------

    def question_pass(self, kept: Sequence[Tensor], last_layer: int | None = None) -> list[Tensor]:
        """Prefill the glue and the question over the `kept` chunk tokens only; what it caches is thrown away.

        Returns the question tokens' position-free queries by stack, fp32 `(L, H, Q, D)` (SamKV, "generic query" before
        pooling), L being the layers up to `last_layer` that attend to it. What follows the question cannot change them:
        it is not run.
        """
        last = self.adapter.shape.layers - 1 if last_layer is None else last_layer
        with self._scoring():
            return self._queries(*self._asking(kept, last), last)[0]

    def asking_pass(self, kept: Sequence[Tensor], last_layer: int) -> tuple[list[Tensor], Tensor]:
        """As `question_pass`, but to the prompt's end: by stack the queries `(L, H, Q, D)` of the question and of the
        glue after the chunks, and their positions `(Q,)`."""
        with self._scoring():
            return self._queries(*self._asking(kept, last_layer, to_the_end=True), last_layer)

    def _queries(self, layout: Layout, cache: SlotCache, last: int) -> tuple[list[Tensor], Tensor]:
        with self.stage("select"):
            fresh, asked, ids = self._question_rows(layout)
            queries = self.adapter.question_queries(ids, fresh, asked, cache, last)
            return queries, layout.positions[fresh][asked]

    def question_attention(self, kept: Sequence[Tensor], layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What the question, and the glue after the chunks, attend to among the `kept` chunk tokens as stored.

        Returns attention averaged over heads, fp32 `(N, Q, T)` for the N `layers` and all T kept chunk tokens in order,
        on the model's device (it is large: take what you need of it before moving it), and every chunk's columns.
        """
        with self._scoring(), self.stage("select"):
            layout, cache = self._asking(kept, max(layers), to_the_end=True)
            fresh, asked, ids = self._question_rows(layout)
            maps = self._of_chunks(self.adapter.question_attention(ids, fresh, asked, cache, layers), layout)
        return maps, layout.columns(len(kept))

    def witnessed(self, witnesses: Picked, last_layer: int) -> Tensor:
        """What the chunk tokens `witnesses` attend to among all stored ones, averaged over heads and over the layers up
        to `last_layer`: `(W, T)`. They, and the glue if no pass has, are computed for it; entries are restored."""
        kept, ground = self.caches.everything, self.caches.ground
        layout = self.caches.layout(kept)
        known = self.caches.holds(layout)
        cache = self.caches.completed(kept, layout, None, range(last_layer + 1))
        own = ground.spots[witnesses.at]
        slots = own if known else ground.with_glue(witnesses)
        if known and self.adapter.rotary.depends_on_length:  # a call's frequencies are those of its last position
            slots = torch.cat([slots, slots.new_full((1,), self.plan.n_tokens - 1)])
        means = MeanAttention(torch.searchsorted(slots, own))
        with self.stage("select"):
            self.costs.chunk_token_layers += witnesses.count * (last_layer + 1)
            self.costs.passes.append(Pass(layout.positions, slots, last_layer + 1, ended=True))
            self.costs.question_pass_tokens += len(slots)
            with cache.restoring(slots):
                self.adapter.recompute(ground.here[slots], slots, cache, last_layer=last_layer, observer=means)
            self.caches.hold(layout, cache)
            return self._of_chunks(means.found, layout)

    def _asking(self, kept: Sequence[Tensor], last_layer: int, to_the_end: bool = False) -> tuple[Layout, SlotCache]:
        question = self.plan.question
        stop = question.start + (len(question.token_ids) if question.in_prompt else 0)
        layout = self.caches.layout(kept, None if to_the_end else stop)
        if not question.in_prompt:
            layout = with_question(layout, question.token_ids)
        self.costs.passes.append(Pass(layout.positions, layout.glue, last_layer + 1, ended=True))
        cache = self.caches.assemble(kept, layout, range(last_layer + 1))
        if question.in_prompt and to_the_end:
            self.caches.hold(layout, cache)
        return layout, cache

    def _question_rows(self, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Slots to run (the glue), which of those rows ask (the question, and glue after the chunks), their ids."""
        fresh = layout.glue
        self.costs.question_pass_tokens += len(fresh)
        return fresh, asking_rows(self.plan, layout.positions[fresh]), layout.ids[fresh]

    def recompute(
        self, selection: Selection, rows: Sequence[Tensor | None] | None = None, theta: float | Literal["cosine"] = 1.0
    ) -> Prepared:
        """ONE forward over the glue and `selection.recomputed` at true positions; the rest of what is kept is reused.

        `rows[layer]` gives for every kept chunk token (in order) whether that layer stores it; `theta` below 1 or
        "cosine" fuses chunk entries instead of overwriting them. Entries that every layer overwrites are not read.
        """
        layout = self.caches.layout(selection.kept)
        replaced = self.caches.ground.picked(selection.recomputed) if rows is None and theta == 1.0 else None
        cache = self.caches.completed(selection.kept, layout, replaced)
        fresh = self._fresh(layout, selection)
        masks, device = None, self.adapter.device
        if rows is not None:
            masks = [None if row is None else few(stored_rows(row, layout, fresh.slots), device) for row in rows]
        logits = self._recompute_into(cache, layout, fresh, masks, theta)
        return Prepared.of(self.caches.finish(cache), layout.ids, selection, logits)

    def recompute_and_settle(
        self, again: Picked, layers: Sequence[int], settle: Callable[[Tensor], Settled],
        theta: float | Literal["cosine"] = 1.0, wide: int | None = None, sees: float = 0.0, at: int = 0,
        answer_weight: float = 1.0, also: Picked | None = None,
    ) -> Prepared:  # fmt: skip
        """ONE forward over glue and tokens `again`, which attend to all stored entries; `settle` decides what is kept.

        It gets how much attention every chunk token received `(T,)`, on the model's device: the most that a token after
        the chunks, from the question on, paid it on any of `layers` in this very pass, averaged over heads; what the
        last one paid, which produces the first new token and attends to everything, counts `answer_weight` times. The
        rest is dropped before that token is recorded, or after `at` tokens of the answer. What precedes the asking
        tokens attends to everything on the first `wide` layers, by default on all; above, only to what is computed in
        this pass, the tokens `also`, and of the rest the share `sees` that most closely precedes it. The host waits
        only to know what is kept.
        """
        ground, layout = self.caches.ground, self.caches.layout(self.caches.everything)
        cache = self.caches.completed(self.caches.everything, layout, again if theta == 1.0 else None)
        slots = ground.with_glue(again)
        fresh, asking = Fresh(slots, ground.here[slots], ground.chunked[slots], again.count), answering(self.plan)
        there = cache.positions[: len(layout.ids)]
        narrow = None if wide is None else Narrow.of(wide, slots[:-asking], there, sees, ground.known(also))
        if self.adapter.shape.shared and not self.adapter.speaks_at_once(len(fresh)):
            # Above the layers with caches nothing attends to what precedes the answer's rows: these go on alone.
            self._pass(cache, layout, fresh, None, theta, None, narrow)
            fresh, narrow = fresh.last(asking), None
        rows = torch.arange(len(fresh) - asking, len(fresh), device=self.adapter.device)
        maps = AttentionMaps(rows, layers)
        logits = self._recompute_into(cache, layout, fresh, theta=theta, observer=maps, narrow=narrow)
        with self.stage("select"):
            looked_at = most_looked_at(self._of_chunks(maps.found, layout), answer_weight)
            if at:
                late = LateSettling(at, self.adapter, ground, self.lengths, layers, again, looked_at, settle)
                return Prepared(self.caches.finish(cache), ground.here, late.selection, logits, late)
            settled = settle(looked_at)
            cache.keep(stays := ground.staying(settled.kept))
        told = partial(settled.selection, self.lengths)
        return Prepared(self.caches.finish(cache), ground.here[stays], told, logits)

    def _recompute_into(
        self, cache: SlotCache, layout: Layout, fresh: Fresh, rows: Sequence[Tensor | None] | None = None,
        theta: float | Literal["cosine"] = 1.0, observer: Observer | None = None, narrow: Narrow | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute the `fresh` tokens, the last one (glue) included; returns the first new token's logits `(vocab,)`."""
        speak = self.adapter.speaks_at_once(len(fresh))
        logits = self._pass(cache, layout, fresh, rows, theta, observer, narrow, speak)
        return self._first(cache, layout) if logits is None else logits

    def _pass(
        self, cache: SlotCache, layout: Layout, fresh: Fresh, rows: Sequence[Tensor | None] | None,
        theta: float | Literal["cosine"], observer: Observer | None, narrow: Narrow | None, speak: bool = False,
    ) -> Tensor | None:  # fmt: skip
        shape, blend = self.adapter.shape, None
        n_layers = shape.layers if speak or observer is not None else shape.cached().stop
        with self.stage("recompute"):
            self.costs.chunk_token_layers += fresh.of_chunks * n_layers
            self.costs.passes.append(Pass(layout.positions, fresh.slots, n_layers, ended=not speak, narrow=narrow))
            if theta != 1.0:
                blend = Blend(theta, few(fresh.chunked, self.adapter.device))
            return self.adapter.recompute(
                fresh.ids, fresh.slots, cache, rows, blend, n_layers - 1, observer, narrow, speak
            )

    def _first(self, cache: SlotCache, layout: Layout) -> Tensor:
        """The logits of the first new token, from a pass over the last kept token alone."""
        with self.stage("first_token"):
            last = torch.tensor([len(layout.ids) - 1])
            self.costs.passes.append(Pass(layout.positions, last, self.adapter.shape.layers))
            return self.adapter.next_logits(layout.ids, cache)

    def recompute_checked(self, check: int, choose: Callable[[Tensor, list[Tensor]], Selection]) -> Prepared:
        """Keep every chunk token and compute it up to layer `check`; `choose` then decides which go on above it.

        `choose(deviation, columns)` gets the squared difference of new and stored keys at that layer, fp32 `(T,)` over
        all chunk tokens, and each chunk's columns in it (CacheBlend's step; below `check` all tokens stay fresh).
        """
        kept = self.caches.everything
        layout = self.caches.layout(kept)
        cache = self.caches.assemble(kept, layout)
        with self.stage("select"):
            cache.arrive(check)
            layer = cache.slot_layers[check]
            stored = layer.snapshot()
            self.adapter.recompute(layout.ids, torch.arange(len(layout.ids)), cache, last_layer=check)
            moved = (layer.snapshot()[0].float() - stored[0].float()).square().sum((0, 1, 3)).cpu()
            layer.restore(stored)
            columns = layout.columns(len(kept))
            selection = choose(moved[layout.owner >= 0], columns)
            self.costs.chunk_token_layers += self.plan.chunk_tokens * (check + 1)
            self.costs.passes.append(Pass(layout.positions, torch.arange(len(layout.ids)), check + 1, ended=True))
            self.costs.scored_bytes += stored[0].nbytes // len(layout.ids) * self.plan.chunk_tokens
        logits = self._recompute_into(cache, layout, self._fresh(layout, selection))
        return Prepared.of(self.caches.finish(cache), layout.ids, selection, logits)

    def _of_chunks(self, found: Tensor, layout: Layout) -> Tensor:
        """What was found about chunk tokens `(..., T)`, out of what was found about all slots. In two dimensions: in
        three a CPU takes up to seven times as long."""
        owned = sent(layout.owned, self.adapter.device)
        return found.flatten(0, -2).index_select(1, owned).view(*found.shape[:-1], len(owned))

    def _fresh(self, layout: Layout, selection: Selection) -> Fresh:
        """What is computed: the glue and what is recomputed; where that is every chunk token, the head too."""
        ground, again = self.caches.ground, self.caches.ground.marked(selection.recomputed)
        known = layout.positions < ground.uncomputed(int(again.sum()))
        return Fresh.of(layout, ((layout.owner < 0) & ~known | again[layout.positions]).nonzero()[:, 0])

    def prefill(self) -> Prepared:
        """No reuse at all: `generate()` prefills every prompt token."""
        self.costs.chunk_token_layers += self.plan.chunk_tokens * self.adapter.shape.cached().stop
        self.costs.held(self.plan.n_tokens * self.adapter.shape.bytes_per_token)
        self.costs.passes.append(Pass.whole(self.plan.n_tokens, self.adapter.shape.layers))
        return Prepared.of(None, self.caches.ground.ids, Selection.all_of(self.plan))
