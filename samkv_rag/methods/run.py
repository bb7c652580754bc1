"""What a method may do with one prompt, and what it cost: the verbs between the methods and the floors below."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samkv_rag.methods.entries import Entries
from samkv_rag.methods.layout import Layout, with_question
from samkv_rag.methods.passes import Pass
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.attention import AttentionMaps, MeanAttention, Observer, together
from samkv_rag.model.cache import Blend, SlotCache
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import ChunkSummary, PromptPlan, Selection

Stage = Literal["plan", "load", "select", "recompute", "first_token"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `generate()` starts from. `ids` are the kept tokens; `cache` holds all of them but the last, or is None
    for an ordinary prefill of all prompt tokens."""

    cache: SlotCache | None
    ids: tuple[int, ...]
    selection: Selection


@dataclass(frozen=True, slots=True)
class Held:
    """The cache of a pass over the prompt's tokens at `positions` to its end, with the layers that it went through:
    stored entries as they are, and at the glue what will be computed again."""

    positions: Tensor
    cache: SlotCache


@dataclass(frozen=True, slots=True)
class Look:
    """What a recompute saw over all T chunk tokens, averaged over heads.

    `attention` `(N, Q, T)`: of the tokens that lead up to the answer, on N layers; `witnesses` `(W,)`: recomputed
    tokens, as columns, and `witnessed` `(W, T)` what they attended to themselves, averaged over all layers. `columns`
    are each chunk's.
    """

    attention: Tensor
    witnesses: Tensor
    witnessed: Tensor
    columns: list[Tensor]


class Run:
    """One prompt under one method. Reads go through here, so that the report counts what really happened."""

    def __init__(
        self, plan: PromptPlan, adapter: ModelAdapter, store: ChunkKVStore, room: int = 0, min_kept_tokens: int = 0,
        fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.adapter = adapter
        self.store = store
        self.entries = Entries(plan, adapter, store)
        self.room = room
        self.min_kept_tokens = min_kept_tokens
        self.fingerprint = fingerprint
        self.question_pass_tokens = 0
        self.scored_bytes = 0
        self.kv_bytes_peak = 0
        self.passes: list[Pass] = []
        self._held: Held | None = None
        self.chunk_token_layers = 0
        self.seconds: dict[str, float] = defaultdict(float)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every chunk in the prompt."""
        return [len(chunk.token_ids) for chunk in self.plan.chunks]

    @property
    def _chunks_end(self) -> int:
        return max((chunk.stop for chunk in self.plan.chunks), default=0)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Charge the block's wall clock to a stage of the report."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._settle()
            self.seconds[name] += time.perf_counter() - start

    def _settle(self) -> None:
        if self.adapter.device.type == "cuda":
            torch.cuda.synchronize(self.adapter.device)

    # -- reading -----------------------------------------------------------------------------------------------

    def summaries(self, index: int) -> ChunkSummary:
        """The small part of chunk `index`: block summaries and local query."""
        known, new = self.entries.summary(index)
        self.scored_bytes += sum(x.nbytes for x in (known.mean, known.low, known.high, known.local_query)) if new else 0
        return known

    def local_query(self, index: int) -> Tensor:
        """The local query of chunk `index`, fp32 `(L, H, D)`, position-free."""
        return self.summaries(index).local_query.to(self.adapter.device, torch.float32)

    # -- running the model -------------------------------------------------------------------------------------

    def layout(self, kept: Sequence[Tensor], stop: int | None = None) -> Layout:
        """Glue and the `kept` tokens of every chunk, in prompt order, up to position `stop`."""
        positions, ids, owner = [], list[int](), []
        chunks = iter(enumerate(kept))
        for segment in self.plan.segments:
            index, inside = next(chunks) if segment.kind == "chunk" else (-1, torch.arange(len(segment.token_ids)))
            inside = inside if stop is None else inside[inside + segment.start < stop]
            positions.append(inside + segment.start)
            ids += [segment.token_ids[token] for token in inside.tolist()]
            owner.append(torch.full((len(inside),), index))
        return Layout(torch.cat(positions), tuple(ids), torch.cat(owner))

    def assemble(
        self, kept: Sequence[Tensor], layout: Layout, room: int = 0, last_layer: int | None = None,
        replaced: Sequence[Tensor] | None = None, first_layer: int = 0,
    ) -> SlotCache:  # fmt: skip
        """A cache of the layout's tokens at their true positions: chunk tokens from the store, glue still empty.

        It has the layers from `first_layer` to `last_layer`, all of them by default. Chunk tokens `replaced` are about
        to be computed and written over before anybody looks: they are not read, and stay empty too.
        """
        shape, total = self.adapter.shape, len(layout.ids)
        layers = range(first_layer, shape.layers if last_layer is None else last_layer + 1)
        with self.stage("load"):
            keys = torch.zeros(len(layers), shape.kv_heads, total, shape.head_dim, dtype=self.adapter.dtype)
            values = torch.zeros_like(keys)
            for index, inside in enumerate(kept):
                slots = (layout.owner == index).nonzero()[:, 0]
                inside = inside[: len(slots)]
                if replaced is not None:
                    stays = ~torch.isin(inside, replaced[index])
                    slots, inside = slots[stays], inside[stays]
                if len(slots):
                    keys[:, :, slots], values[:, :, slots] = self.entries.tokens(index, inside, layers)
            table = self.adapter.table(layout.positions)
            cache = self.adapter.assemble(keys, values, layout.positions, table, room, layers)
            self.kv_bytes_peak = max(self.kv_bytes_peak, cache.nbytes)
            return cache

    def _completed(self, kept: Sequence[Tensor], layout: Layout, replaced: Sequence[Tensor] | None) -> SlotCache:
        """A cache of the `layout` with all layers and room to decode: what an earlier pass has left of it, and the rest
        from the store, but for chunk tokens `replaced`."""
        held, self._held = self._held, None
        if held is None or not bool(torch.isin(layout.positions, held.positions).all()):
            return self.assemble(kept, layout, self.room + 1, replaced=replaced)
        cache, layers = held.cache, len(held.cache.slot_layers)
        if len(layout.positions) < len(held.positions):
            cache.keep(torch.searchsorted(held.positions, layout.positions))
        if layers < self.adapter.shape.layers:
            cache.deepen(self.assemble(kept, layout, self.room + 1, replaced=replaced, first_layer=layers))
        self.kv_bytes_peak = max(self.kv_bytes_peak, cache.nbytes)
        return cache

    def question_pass(self, kept: Sequence[Tensor], last_layer: int | None = None) -> Tensor:
        """Prefill the glue and the question over the `kept` chunk tokens only; what it caches is thrown away.

        Returns the question tokens' position-free queries, fp32 `(L, H, Q, D)` (SamKV, "generic query" before
        pooling), L being the layers up to `last_layer`. What stands behind the question cannot change them: not run.
        """
        last = self.adapter.shape.layers - 1 if last_layer is None else last_layer
        return self._queries(*self._asking(kept, last), last)[0]

    def asking_pass(self, kept: Sequence[Tensor], last_layer: int) -> tuple[Tensor, Tensor]:
        """As `question_pass`, but to the prompt's end: queries `(L, H, Q, D)` of the question and of the glue behind
        the chunks, and their positions `(Q,)`."""
        return self._queries(*self._asking(kept, last_layer, to_the_end=True), last_layer)

    def _queries(self, layout: Layout, cache: SlotCache, last: int) -> tuple[Tensor, Tensor]:
        with self.stage("select"):
            fresh, asked, ids = self._question_rows(layout)
            queries = self.adapter.question_queries(ids, fresh, asked, cache, last)
            return queries, layout.positions[fresh][asked]

    def question_attention(self, kept: Sequence[Tensor], layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What the question, and the glue behind the chunks, attend to over the `kept` chunk tokens as stored.

        Returns attention averaged over heads, fp32 `(N, Q, T)` for the N `layers` and all T kept chunk tokens in prompt
        order, and for every chunk the columns of its tokens.
        """
        layout, cache = self._asking(kept, max(layers), to_the_end=True)
        with self.stage("select"):
            fresh, asked, ids = self._question_rows(layout)
            maps = self.adapter.question_attention(ids, fresh, asked, cache, layers)[:, :, layout.owner >= 0]
            return maps.cpu(), layout.columns(len(kept))

    def _asking(
        self, kept: Sequence[Tensor], last_layer: int, to_the_end: bool = False
    ) -> tuple[Layout, SlotCache]:  # fmt: skip
        question = self.plan.question
        stop = question.start + (len(question.token_ids) if question.in_prompt else 0)
        layout = self.layout(kept, None if to_the_end else stop)
        if not question.in_prompt:
            layout = with_question(layout, question.token_ids)
        self.passes.append(Pass(layout.positions, layout.glue, last_layer + 1, ended=True))
        before = self.entries.bytes_read
        cache = self.assemble(kept, layout, self.room + 1, last_layer=last_layer)
        self.scored_bytes += self.entries.bytes_read - before
        if question.in_prompt and to_the_end:
            self._held = Held(layout.positions, cache)
        return layout, cache

    def _question_rows(self, layout: Layout) -> tuple[Tensor, Tensor, list[int]]:
        """Slots to run (the glue), which of those rows ask (the question, and glue behind the chunks), their ids."""
        fresh, question = layout.glue, self.plan.question
        at = layout.positions[fresh]
        inside = (at >= question.start) & (at < question.start + len(question.token_ids))
        asked = (inside | (at >= max(question.start, self._chunks_end))).nonzero()[:, 0]
        self.question_pass_tokens += len(fresh)
        return fresh, asked, [layout.ids[slot] for slot in fresh.tolist()]

    def recompute(
        self, selection: Selection, rows: Sequence[Tensor | None] | None = None, theta: float | Literal["cosine"] = 1.0
    ) -> Prepared:
        """ONE forward over the glue and `selection.recomputed` at true positions; the rest of what is kept is reused.

        `rows[layer]` gives for every kept chunk token (in prompt order) whether that layer stores it; `theta` below 1
        or "cosine" fuses chunk entries instead of overwriting them. What every layer overwrites is not read.
        """
        layout = self.layout(selection.kept)
        replaced = selection.recomputed if rows is None and theta == 1.0 else None
        cache = self._completed(selection.kept, layout, replaced)
        slots = self._fresh(layout, selection)
        masks = None if rows is None else [self._stored(row, layout, slots) for row in rows]
        self._recompute_into(cache, layout, slots, masks, theta)
        cache.crop_to(len(layout.ids) - 1)
        return Prepared(cache, layout.ids, selection)

    def recompute_and_settle(
        self, again: Sequence[Tensor], layers: Sequence[int], settle: Callable[[Look], Selection],
        witnesses: Sequence[Tensor] = (), theta: float | Literal["cosine"] = 1.0,
    ) -> Prepared:  # fmt: skip
        """ONE forward over the glue and the tokens `again`, which see all stored entries; `settle` says what stays.

        It gets what the tokens behind the chunks, from the question on, attended to on `layers` in this very pass, and
        what the `witnesses`, some of `again`, did. The rest is dropped before the first token is generated.
        """
        whole = Selection(Selection.all_of(self.plan).kept, tuple(again))
        layout = self.layout(whole.kept)
        cache = self._completed(whole.kept, layout, again if theta == 1.0 else None)
        slots = self._fresh(layout, whole)
        device, columns = self.adapter.device, layout.columns(len(whole.kept))
        maps = AttentionMaps(self._answering_rows(layout.positions[slots]).to(device), layers)
        owned = (layout.owner >= 0).nonzero()[:, 0]
        seeing = torch.cat([torch.arange(0), *(c[w] for c, w in zip(columns, witnesses, strict=False))])
        means = MeanAttention(torch.searchsorted(slots, owned[seeing]).to(device))
        self._recompute_into(cache, layout, slots, theta=theta, observer=together(maps, means))
        with self.stage("select"):
            chunk_tokens = layout.owner >= 0
            witnessed = means.mean(len(layout.ids))[:, chunk_tokens].cpu()
            selection = settle(Look(maps.stacked[:, :, chunk_tokens].cpu(), seeing, witnessed, columns))
            thinned = self.layout(selection.kept)
            cache.keep(torch.searchsorted(layout.positions, thinned.positions))
            cache.crop_to(len(thinned.ids) - 1)
        return Prepared(cache, thinned.ids, selection)

    def _answering_rows(self, at: Tensor) -> Tensor:
        """Which rows of a pass, at positions `at`, lead up to the answer: those from the question on that stand behind
        all chunks, or else the last."""
        start = self.plan.question.start if self.plan.question.in_prompt else 0
        return (at >= min(max(start, self._chunks_end), int(at[-1]))).nonzero()[:, 0]

    def _recompute_into(
        self, cache: SlotCache, layout: Layout, slots: Tensor, rows: Sequence[Tensor | None] | None = None,
        theta: float | Literal["cosine"] = 1.0, observer: Observer | None = None,
    ) -> None:  # fmt: skip
        with self.stage("recompute"):
            ids = [layout.ids[slot] for slot in slots.tolist()]
            owned = (layout.owner[slots] >= 0).to(self.adapter.device)
            self.chunk_token_layers += int(owned.sum()) * self.adapter.shape.layers
            self.passes.append(Pass(layout.positions, slots, self.adapter.shape.layers, ended=True))
            blend = None if theta == 1.0 else Blend(theta, owned)
            self.adapter.recompute(ids, slots, cache, rows, blend, observer=observer)

    def recompute_checked(self, check: int, choose: Callable[[Tensor, list[Tensor]], Selection]) -> Prepared:
        """Every chunk token kept and computed up to layer `check`; `choose` then says which go on above it.

        `choose(deviation, columns)` gets the squared difference of new and stored keys at that layer, fp32 `(T,)` over
        all chunk tokens, and each chunk's columns in it (CacheBlend's step; below `check` all tokens stay fresh).
        """
        kept = Selection.all_of(self.plan).kept
        layout = self.layout(kept)
        cache = self.assemble(kept, layout, self.room + 1)
        with self.stage("select"):
            layer = cache.slot_layers[check]
            stored = layer.snapshot()
            self.adapter.recompute(layout.ids, torch.arange(len(layout.ids)), cache, last_layer=check)
            moved = (layer.snapshot()[0].float() - stored[0].float()).square().sum((0, 1, 3)).cpu()
            layer.restore(stored)
            columns = layout.columns(len(kept))
            selection = choose(moved[layout.owner >= 0], columns)
            self.chunk_token_layers += self.plan.chunk_tokens * (check + 1)
            self.passes.append(Pass(layout.positions, torch.arange(len(layout.ids)), check + 1, ended=True))
            self.scored_bytes += stored[0][:, :, layout.owner >= 0].nbytes
        self._recompute_into(cache, layout, self._fresh(layout, selection))
        cache.crop_to(len(layout.ids) - 1)
        return Prepared(cache, layout.ids, selection)

    @staticmethod
    def _fresh(layout: Layout, selection: Selection) -> Tensor:
        """Slots that are computed: the glue and what is recomputed."""
        fresh = layout.owner < 0
        for index, (kept, again) in enumerate(zip(selection.kept, selection.recomputed, strict=True)):
            fresh[layout.owner == index] = torch.isin(kept, again)
        return fresh.nonzero()[:, 0]

    def _stored(self, row: Tensor | None, layout: Layout, slots: Tensor) -> Tensor | None:
        if row is None:
            return None
        stored = torch.ones(len(layout.ids), dtype=torch.bool)
        stored[layout.owner >= 0] = row
        return stored[slots].to(self.adapter.device)

    def prefill(self) -> Prepared:
        """No reuse at all: `generate()` prefills every prompt token."""
        self.chunk_token_layers += self.plan.chunk_tokens * self.adapter.shape.layers
        self.kv_bytes_peak = self.plan.n_tokens * self.adapter.shape.bytes_per_token
        self.passes.append(Pass.whole(self.plan.n_tokens, self.adapter.shape.layers))
        return Prepared(None, tuple(self.plan.token_ids), Selection.all_of(self.plan))
