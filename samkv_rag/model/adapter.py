"""Everything the library does with a model, in one place: ingest, ask, recompute, generate.

The model is driven through three public seams of transformers (a Cache, a registered attention function, explicit
`position_ids`); no layer is re-implemented, hooked or patched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samkv_kernels.sending import few, sent
from samkv_rag.errors import UnsupportedModel
from samkv_rag.model import compiling, graphs, supported
from samkv_rag.model.absorbed import AbsorbedPlan, Appending
from samkv_rag.model.attached import Attached
from samkv_rag.model.attention import NAME, AttentionPlan, PassEnded, attention_plan, without_cudnn
from samkv_rag.model.beginnings import ROOM, UNKNOWN, Beginnings, Head
from samkv_rag.model.blending import Blend
from samkv_rag.model.buffers import Buffers, room_for
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.calling import handing
from samkv_rag.model.filling import Filling, Loading, Parts
from samkv_rag.model.loop import Loop
from samkv_rag.model.measuring import measured
from samkv_rag.model.narrowed import Narrow, narrowed_plan
from samkv_rag.model.observers import AttentionMaps, Observer
from samkv_rag.model.prefill import chunk_caches
from samkv_rag.model.recorded import Passes, PromptPass
from samkv_rag.model.rotary import Rotary, RotaryTable
from samkv_rag.model.unpacked import UnpackedPlan
from samkv_rag.model.workspace import Workspace
from samkv_rag.types import ChunkKV


class ModelAdapter:
    """A decoder-only transformers model, attached. Raises `UnsupportedModel` when it cannot be served exactly.

    `wanted` is "auto", "torch", "numba" or "triton", None to go by the environment; `backend` is the one chosen.
    """

    def __init__(self, model: Any, sink_prefix: Sequence[int] = (), wanted: str | None = None) -> None:
        supported.refuse_what_is_not_exact(model)
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.backend = supported.backend_for(self.device, wanted)
        with supported.attaching(model):
            own, count = supported.logits_by_itself(model), len(supported.PROBE)
            model.set_attn_implementation(NAME)
            self._attach(model, sink_prefix)
            for cache in (None, self.empty_cache(count)):
                ours = self.logits_behind(supported.PROBE, cache, count)
                supported.refuse_other_attention(model, own, ours)
            compiling.compile_if_wanted(model)
        self.attached = Attached(model)

    def _attach(self, model: Any, sink_prefix: Sequence[int]) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.decoder = model.get_decoder()
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self.rotary = Rotary(model)
        self.sink_prefix = tuple(sink_prefix)
        self.shape, self.latents = measured(self)
        self.beginnings = Beginnings(self.shape)
        apart, looks = self.unpackable is not None, self.rotary.looks_at_length
        self.loop = Loop(model, self.empty_cache, apart, self.backend, self.latents, looks)
        self.passes: Passes | None = None
        if graphs.wanted(self.backend, self.device, self.loop.unfit):
            self.record()

    @property
    def unpackable(self) -> str | None:
        """What keeps answers from going on over packed tokens, and from sharing a forward, if anything does."""
        if self.rotary.depends_on_length:
            return "this model's keys change with the length of the text"
        known = self.latents is None or self.latents.absorbed
        return None if known else "this model makes keys and values of latents in a way of its own"

    @property
    def selection_layers(self) -> tuple[int, ...] | None:
        """The layers on which questions find what they need in this model, as measured and noted in its config
        (`samkv_selection_layers`); None where that has not been measured."""
        layers = getattr(self.config, "samkv_selection_layers", None)
        return tuple(layers) if layers else None

    def forward(
        self, ids: Sequence[int] | Tensor, positions: Tensor, cache: Any, plan: AttentionPlan, speak: int = 0
    ) -> Tensor | None:
        """One pass over `ids` at `positions` `(Q,)`, to fill `cache`; with `speak` it goes on to the logits
        `(B, speak, vocab)` after the last `speak` tokens, and returns them, else None.

        The 4-D mask is a dummy: transformers passes it on unchanged, and our attention compares positions instead.
        """
        tokens = sent(torch.as_tensor(ids), self.device)
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        dummy = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        run, logits = partial(self.model, logits_to_keep=self._last(speak, tokens)) if speak else self.decoder, None
        with self.rotary.alone, attention_plan(plan), contextlib.suppress(PassEnded):
            out = run(
                tokens, **self._handing(cache, plan), attention_mask=dummy, use_cache=True,
                position_ids=positions.to(self.device)[None].expand(len(tokens), -1),
            )  # fmt: skip
            logits = out.logits[:, -speak:].float() if speak else None
        if plan.last_layer in (None, len(self.rotary.kinds) - 1) and len(plan.seen) < len(self.rotary.kinds):
            raise UnsupportedModel(
                f"{type(self.model).__name__} does not route every layer through the attention registry; "
                "use a model whose class sets _supports_attention_backend."
            )
        return logits

    def _handing(self, cache: Any, plan: AttentionPlan) -> dict[str, Any]:
        """The keyword argument that passes a cache to the model, for a pass under this plan."""
        if plan.absorbs:
            return handing(self.model, Appending([cache]))
        return handing(self.model, cache, self.rotary.latent, plan.shown)

    def _suited(self, plan: AttentionPlan, cache: SlotCache, rows: int, total: int) -> AttentionPlan:
        """The same plan for a pass of `rows` rows among `total` tokens, or one that suits what this model caches."""
        if self.latents is None:
            return plan
        if self.latents.pays(rows, total):
            return AbsorbedPlan.of(plan, cache, self.latents)
        return plan if plan.packed is None else UnpackedPlan.like(plan, latents=self.latents)

    def _last(self, count: int, tokens: Tensor) -> int | Tensor:
        """The last `count` of `tokens` `(B, Q)` as transformers' `logits_to_keep`. Given a number, layers without a
        cache of their own leave out the other tokens, which an observer of the pass may want."""
        if not self.shape.shared:
            return count
        return torch.arange(tokens.shape[1] - count, tokens.shape[1], device=self.device)

    # -- ingestion ---------------------------------------------------------------------------------------------

    def ingest(self, texts: Sequence[str], token_ids: Sequence[Sequence[int]]) -> list[ChunkKV]:
        """The caches of chunks that are each prefilled alone, in one batch."""
        return chunk_caches(self, texts, token_ids)

    # -- what prompts begin with ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unacquainted(self, room: int = ROOM) -> Iterator[None]:
        """Within the block no prompt counts as seen before, and what its prompts begin with is forgotten after it. With
        a `room` of 0 it is forgotten at once: every prompt is computed like the first one."""
        known, self.beginnings = self.beginnings, Beginnings(self.shape, room)
        try:
            yield
        finally:
            self.beginnings = known

    # -- query time --------------------------------------------------------------------------------------------

    def table(self, positions: Tensor) -> RotaryTable:
        """Angles for `positions` `(T,)`; call once for all positions of a prompt."""
        return self.rotary.table(few(positions, self.device))

    def assemble(
        self, parts: Parts, positions: Tensor, room: int, steps: Sequence[range] | None = None,
        loading: Loading = contextlib.nullcontext, head: Head = UNKNOWN,
    ) -> SlotCache:  # fmt: skip
        """A cache for tokens at `positions` `(T,)` and `room` more, with the layers of `steps`, which make up one run.

        By default that is a single step of all layers. `head` has the entries of the first tokens; `parts` fill in
        others from the store, with keys turned to their positions; the rest is zeros. A single step is filled now,
        several steps each before its layers are first read, within `loading`.
        """
        steps = [self.shape.cached()] if steps is None else steps
        layers, slots = range(steps[0].start, steps[-1].stop), len(positions) + room
        lent = None if self.passes is None else self.passes.lend(layers, slots)
        stacks = self._buffers(slots, layers) if lent is None else lent
        cache = SlotCache(stacks, positions, self.shape.sources)
        angles = self.rotary.turning(positions, cache.positions[: len(positions)])
        filling = Filling(stacks, layers, self.shape, len(positions), angles, self.backend, head, loading)
        filling.come(cache, parts, steps)
        return cache

    def _buffers(self, slots: int, layers: range) -> list[Buffers]:
        """Room for `slots` slots of `layers`: one buffer for each stack that has any of them."""
        return room_for(self.shape.cuts(layers), slots, layers.start, self.dtype, self.device, self.rotary.latent)

    def question_queries(
        self, ids: Sequence[int] | Tensor, slots: Tensor, asked: Tensor, cache: SlotCache, last_layer: int
    ) -> list[Tensor]:
        """Position-free queries of rows `asked` of a pass over `slots`, by stack: fp32 `(L, H, Q, D)`, L being the
        layers up to `last_layer` that attend to it. Raises `UnsupportedModel` where latents are cached."""
        self.refuse_summaries_of_latents()
        asked, queries = few(asked, self.device), list[Tensor]()
        self.recompute(
            ids, slots, cache, last_layer=last_layer,
            observer=lambda seen: queries.append(seen.query[0].index_select(1, asked)),
        )  # fmt: skip
        table = self.table(cache.positions[slots.to(self.device)]).at(asked)
        stacks = self.shape.readers(last_layer)
        return [table.unrotate(torch.stack([queries[layer] for layer in layers]), layers) for layers in stacks]

    def refuse_summaries_of_latents(self) -> None:
        """Raise `UnsupportedModel` if this model caches latents."""
        if self.rotary.latent:
            supported.refuse_summaries(self.model)

    def question_attention(
        self, ids: Sequence[int] | Tensor, slots: Tensor, asked: Tensor, cache: SlotCache, layers: Sequence[int]
    ) -> Tensor:
        """Softmax attention of rows `asked` over all slots, averaged over heads: fp32 `(len(layers), Q, T)`."""
        maps = AttentionMaps(few(asked, self.device), layers)
        self.recompute(ids, slots, cache, last_layer=max(layers), observer=maps)
        return maps.found

    @torch.inference_mode()
    def recompute(
        self, ids: Sequence[int] | Tensor, slots: Tensor, cache: SlotCache, rows: Sequence[Tensor | None] | None = None,
        blend: Blend | None = None, last_layer: int | None = None, observer: Observer | None = None,
        narrow: Narrow | None = None, speak: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """ONE forward over the tokens at `slots` (sorted), which attend to all kept slots before them; replaces their
        entries.

        It ends once the keys and values of `last_layer`, by default the model's last, are stored; `observer` is called
        for every layer. With `speak` it goes on to the next-token logits after the last slot, fp32 `(vocab,)`, and
        returns them. With `narrow` some of the tokens attend only to one another on the upper layers.
        """
        slots = few(slots, self.device)
        last = None if speak else self.shape.layers - 1 if last_layer is None else last_layer
        everything = len(slots) == cache.get_seq_length()
        asked = PromptPass(torch.as_tensor(ids), slots, last, observer, narrow, speak, everything)
        if self.passes is not None and rows is None and blend is None and self.passes.serves(asked, cache):
            cache.arrive(last)  # a recording does not wait for layers
            return self.passes.take(asked, cache)
        with cache.writing(slots, rows, blend):
            return self._carry_out(asked, cache)

    def _carry_out(self, asked: PromptPass, cache: SlotCache) -> Tensor | None:
        """Carry out a pass; the cache knows where its entries go."""
        narrow, slots = asked.narrow, None if asked.everything else asked.slots
        plan = AttentionPlan(cache.positions, slots, asked.observer, asked.last_layer, self.backend)
        if narrow is not None and narrow.rows and slots is not None:  # else nothing is hidden from any query
            plan = narrowed_plan(plan, narrow, cache, self.latents)
        else:
            plan = self._suited(plan, cache, len(asked.slots), cache.get_seq_length())
        logits = self.forward(asked.ids, cache.positions[asked.slots], cache, plan, int(asked.speak))
        return None if logits is None else logits[0, 0]

    def record(self) -> None:
        """Have steps and passes over prompts recorded as CUDA graphs where possible; a warning says why not."""
        self.loop.record()
        if self.loop.recorder is not None:
            workspace = Workspace(self.shape, partial(self._buffers, layers=self.shape.cached()))
            self.passes = Passes(workspace, self._carry_out, graphs.Graphs(self.device))

    def release(self, cache: SlotCache) -> SlotCache:
        """A prepared cache, complete and in memory of its own: the next prompt will be prepared where this one was."""
        cache.arrive()
        if self.passes is not None and self.passes.holds(cache):
            cache.move()
        return cache

    def speaks_at_once(self, rows: int) -> bool:
        """Whether a pass over `rows` rows should go on to the next token's logits itself.

        Otherwise the last token goes through the model once more, alone. That reads all weights (and launches all
        kernels) again; going on takes all rows through the rest of the last layer. As measured, both cost the same at
        15 to 50 rows a layer on a CPU in fp32 (two processors), at over 60 in bf16, and at 1,700 on an H100, where a
        step of one token takes 27 ms (docs/gpu.md). Layers without a cache of their own are run only if it goes on.
        """
        on_cpu = 24 if self.dtype == torch.float32 else 64
        more = 1 + self.shape.layers - self.shape.cached().stop
        return more * rows <= self.shape.layers * (on_cpu if self.device.type == "cpu" else 1024)

    def next_logits(self, ids: Sequence[int] | Tensor, cache: SlotCache | None = None) -> Tensor:
        """Next-token logits after the last of `ids`, fp32 `(vocab,)`; see `logits_behind`."""
        return self.logits_behind(ids, cache, 1)[0]

    @torch.inference_mode()
    def logits_behind(self, ids: Sequence[int] | Tensor, cache: SlotCache | None, count: int) -> Tensor:
        """Next-token logits, fp32 `(count, vocab)`, after each of the last `count` of `ids`, whose entries are computed
        anew; those of all before them are in `cache`. Without a cache this is an ordinary prefill."""
        tokens = torch.as_tensor(ids, device=self.device)
        if cache is None:
            last = self._last(count, tokens[None])
            return self.model(tokens[None], use_cache=False, logits_to_keep=last).logits[0, -count:].float()  # type: ignore[no-any-return]
        cache.crop_to(len(tokens) - count)
        return self.logits_of(tokens[-count:], cache)

    @torch.inference_mode()
    def logits_of(self, tokens: Sequence[int] | Tensor, cache: SlotCache, observer: Observer | None = None) -> Tensor:
        """The same after each of `tokens`, which follow what `cache` holds; `observer` is called for every layer."""
        start, count = cache.get_seq_length(), len(tokens)
        plan = AttentionPlan(cache.positions, observer=observer, backend=self.backend, packed=cache.packed)
        plan = self._suited(plan, cache, count, start + count)
        with without_cudnn:
            logits = self.forward(tokens, cache.positions[start : start + count], cache, plan, count)
        return logits[0]  # type: ignore[index]

    def empty_cache(self, room: int) -> SlotCache:
        """A cache that holds nothing yet, with `room` for a prompt from position 0 on and its answer."""
        return SlotCache(self._buffers(room, self.shape.cached()), torch.arange(0), self.shape.sources)
