"""Our own decoding loop: one forward for all answers in progress, each with its own cache, positions and rules.

transformers' `generate()` serves one batch from beginning to end; here answers join and leave between steps. Every
model that can be attached is served this way, its answers alone or together; on a GPU the steps are recorded (`steps`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samkv_kernels.backend import Backend, without_triton
from samkv_kernels.sending import sent
from samkv_kernels.softmax import Softmax
from samkv_rag.model.absorbed import AbsorbedPlan, AbsorbedRows, Appending, Latents
from samkv_rag.model.alone import alone, rotary_of
from samkv_rag.model.attention import Plan, attention_plan, without_cudnn
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.calling import cache_name, handing
from samkv_rag.model.decoding import Decoding, Hearer, Settling, take
from samkv_rag.model.memory import is_out_of_memory
from samkv_rag.model.rules import Rules
from samkv_rag.model.steps import Recorder, recorder_of


@dataclass(frozen=True, slots=True)
class RowsPlan:
    """One new token for each of several answers, row by row over its own cache: `key` and `value` of the pass are those
    of the new tokens alone, `(B, G, 1, D)`, and are appended here.

    Nothing is padded or copied, no row needs a mask for its neighbours, and its attention is bit for bit what it is
    alone. What rows share is the reading of the weights: nearly all of a decoding step.
    """

    rows: Sequence[Decoding]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of the step; see `Plan`."""
        out = []
        for index, row in enumerate(self.rows):
            own = slice(index, index + 1)
            keys, values = row.cache.extend(layer, key[own], value[own])
            out.append(row.plan.attend(layer, query[own], keys, values, softmax, window))
        return torch.cat(out)


class Loop:
    """Begins answers of one model and takes steps for several of them; who may call it when is up to the caller.

    `empty(room)` makes a cache for a prompt that has none. `apart`: rows cannot share a forward, because with longrope
    the longest position of a call decides its frequencies, or because its latents are not absorbed. `latents`: those
    of a model that caches such. `looks`: the model looks in every pass whether frequencies have to change, which a
    recording cannot. `recorder` takes the steps where graphs are wanted.
    """

    def __init__(
        self, model: Any, empty: Callable[[int], SlotCache], apart: bool, backend: Backend = "torch",
        latents: Latents | None = None, looks: bool = False,
    ) -> None:  # fmt: skip
        self._model = model
        self._empty = empty
        self._apart = apart
        self._backend = backend
        self._latents = latents
        self._looks = looks
        self._handing = partial(handing, model, latent=latents is not None)
        self._running_alone = alone(rotary_of(model))
        self.recorder: Recorder | None = None

    @property
    def unfit(self) -> str | None:
        """What about the model keeps its steps from being recorded, if anything."""
        if self._latents is not None:
            return "the model caches latents"
        if self._apart or self._looks:
            return "the model's rotary frequencies depend on the length of the text"
        return None

    def record(self) -> None:
        """Have later steps recorded as CUDA graphs where possible; a warning says why not."""
        self.recorder = recorder_of(self._side_by_side, self._empty, self._backend, self._model.device, self.unfit)

    @torch.inference_mode()
    def begin(
        self, ids: Sequence[int] | Tensor, cache: SlotCache | None, logits: Tensor | None = None,
        hearer: Hearer | None = None, random: torch.Generator | None = None, settling: Settling | None = None,
        **generation: Any,
    ) -> Decoding:  # fmt: skip
        """Begin an answer: choose the first new token after `ids`, the kept tokens' ids, by its `logits` `(vocab,)`
        where `cache` holds them all. Without logits the model runs: over what the cache lacks, or over all without a
        cache.

        All kept ids are passed so that logits processors such as a repetition penalty get the context. `generation` is
        what transformers' `generate()` takes. Raises what goes wrong.
        """
        tokens = sent(torch.as_tensor(ids, dtype=torch.long), self._model.device)[None]
        rules = Rules.of(self._model, tokens, **generation)
        if cache is None:
            cache = self._empty(rules.max_length)
        backend = without_triton(self._backend)  # that of steps that are not recorded
        decoding = Decoding(tokens, cache, rules, hearer, random, settling, backend)
        take([decoding], self._alone(decoding) if logits is None else logits[None])
        decoding.result()
        return decoding

    def finish(self, decoding: Decoding) -> list[int]:
        """Decode one answer, alone, to its end; returns its new token ids."""
        while not decoding.ended:
            self.step([decoding])
        return decoding.result()

    @torch.inference_mode()
    def step(self, decodings: Sequence[Decoding]) -> None:
        """One more token for each, in one forward; an error ends the answer that causes it and no other.

        An interrupted step (ctrl-C in the thread that takes it) can be taken again.
        """
        for decoding in decodings:
            decoding.cut_back()
        due = [decoding for decoding in decodings if decoding.due]
        others = [decoding for decoding in decodings if not decoding.due]
        for decoding in due:
            self._settle(decoding)
        if not others:
            return
        try:
            logits = self._forward(others)
        except Exception as error:
            self._blame(others, error)
            return
        take(others, logits)

    @torch.inference_mode()
    def together(self, decodings: Sequence[Decoding]) -> None:
        """One more token for each, in one forward, of which nothing is due; raises what goes wrong in it."""
        take(decodings, self._forward(decodings))

    def _settle(self, decoding: Decoding) -> None:
        """The step in which it is decided what is kept of an answer's prompt: a pass of its own. Where memory is too
        short for that, everything is kept and the next step is an ordinary one."""
        try:
            logits = decoding.settle()
        except Exception as error:
            if is_out_of_memory(error):
                decoding.keep_all()
            else:
                decoding.fail(error)
            return
        take([decoding], logits)

    def _blame(self, decodings: Sequence[Decoding], error: Exception) -> None:
        """A forward for several answers does not tell which one caused an error: run one for each. A warning says so
        where none did: then they cannot share a forward at all."""
        if len(decodings) == 1:
            decodings[0].fail(error)
            return
        for decoding in decodings:
            self.step([decoding])
        if all(decoding.error is None for decoding in decodings):
            why = f"Answers could not be decoded together ({error}): each takes a forward of its own, which is slower."
            warnings.warn(why, RuntimeWarning, stacklevel=3)

    def _forward(self, decodings: Sequence[Decoding]) -> Tensor:
        if self.recorder is not None:
            return self.recorder.take(decodings)
        if self._apart or len(decodings) == 1:
            return torch.cat([self._alone(decoding) for decoding in decodings])
        tokens, positions = (torch.cat(column) for column in zip(*(d.next for d in decodings), strict=True))
        if self._latents is None:
            return self._side_by_side(tokens, positions, RowsPlan(decodings))
        return self._absorbed(tokens, positions, decodings, self._latents)

    def _side_by_side(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """Next-token logits for one new token per row, under a plan that keeps the caches itself."""
        return self._logits(tokens, positions, plan, use_cache=False)

    def _alone(self, decoding: Decoding) -> Tensor:
        if self._apart:
            self._renew(decoding)
        (tokens, positions), latents = decoding.next, self._latents
        total = decoding.cache.get_seq_length() + tokens.shape[1]
        if latents is not None and (decoding.cache.packed is not None or latents.pays(tokens.shape[1], total)):
            return self._absorbed(tokens, positions, [decoding], latents)
        return self._logits(tokens, positions, decoding.plan, **self._handing(decoding.cache), use_cache=True)

    def _absorbed(self, tokens: Tensor, positions: Tensor, decodings: Sequence[Decoding], latents: Latents) -> Tensor:
        """Next-token logits `(B, vocab)` of answers whose latents are attended to as they are."""
        caches = [decoding.cache for decoding in decodings]
        plan = AbsorbedRows([AbsorbedPlan.of(one.plan, one.cache, latents) for one in decodings])
        return self._logits(tokens, positions, plan, **handing(self._model, Appending(caches)), use_cache=True)

    def _logits(self, tokens: Tensor, positions: Tensor, plan: Plan, **caching: Any) -> Tensor:
        """Next-token logits `(B, vocab)`. The 4-D mask is a dummy that transformers passes on unchanged."""
        dummy = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device)
        with self._running_alone, attention_plan(plan), without_cudnn if tokens.shape[1] == 1 else nullcontext():
            out = self._model(tokens, position_ids=positions, attention_mask=dummy, logits_to_keep=1, **caching)
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def _renew(self, decoding: Decoding) -> None:
        """Empty the cache where the model drops it: Phi-3 wants all keys anew when the text outgrows the short
        frequencies."""
        _, positions = decoding.next
        inputs = self._model.prepare_inputs_for_generation(
            decoding.ids, next_sequence_length=positions.shape[1], **self._handing(decoding.cache),
            position_ids=positions, use_cache=True,
        )  # fmt: skip
        if inputs.get(cache_name(self._model)) is None:
            decoding.cache.crop_to(0)
