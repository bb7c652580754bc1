"""Decoding steps of fixed shapes, recorded as CUDA graphs: a GPU plays a step again without the host.

A step of an 8B model is 1,200 launches; the host takes 25 ms and more to make them, the GPU 6 ms to carry them out.
Where a new token goes and what it sees is read from tensors, so that the same launches serve the next token: a token
attends over its cache's whole buffer, of which its span ends with itself. `SAMKV_GRAPHS=off` does without.

Recorded or not, the steps of an answer are the same function, so its tokens do not depend on when a recording began.
They attend by our kernel where a step that is not fixed goes by SDPA: the two differ by rounding.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rows_attention import Caches, Places, put_rows, rows_attention
from samkv_kernels.sending import sent
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans
from samkv_rag.errors import SamKVError
from samkv_rag.model.attention import Plan
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding

VARIABLE = "SAMKV_GRAPHS"
PLAIN_STEPS = 2
"""Steps in the same company before one is recorded, which takes as long as two: short answers are not worth it."""

Forward = Callable[[Tensor, Tensor, Plan], Tensor]
"""Next-token logits `(B, vocab)` of tokens `(B, 1)` at positions `(B, 1)` under a plan that keeps the caches."""
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a function: what comes back does the same work again and returns the same tensor."""
Result = TypeVar("Result")


def wanted(backend: Backend, device: torch.device, apart: bool) -> bool:
    """Whether to record, as SAMKV_GRAPHS says: "on", "off", or "auto" (the default), where it can be done."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "on", "off"):
        raise SamKVError(f"{VARIABLE}={choice!r} is none of 'auto', 'on' and 'off'.")
    return choice == "on" or (choice == "auto" and _obstacle(backend, device, apart) is None)


def recorder_of(forward: Forward, backend: Backend, device: torch.device, apart: bool) -> Recorder | None:
    """Takes a model's steps, if they can be recorded; a warning says what is in the way."""
    obstacle = _obstacle(backend, device, apart)
    if obstacle is None:
        return Recorder(forward, backend, Graphs(device))
    tell(f"Decoding runs without CUDA graphs: {obstacle}.")
    return None


def _obstacle(backend: Backend, device: torch.device, apart: bool) -> str | None:
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if backend != "triton":
        return "the backend torch waits for the GPU within a step; use the backend 'triton'"
    return "the model's rotary frequencies depend on the length of the text" if apart else None


def tell(warning: str) -> None:
    """Warn of what is not recorded."""
    warnings.warn(warning, RuntimeWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """One new token for each of several caches, at `slots` `(B,)` of them. `places`: where the caches are, by layer.

    How a row's keys are split among programs depends on how many rows there are: its last bits depend on its company.
    """

    caches: Sequence[SlotCache]
    places: Sequence[Places]
    slots: Tensor
    backend: Backend
    _spans: dict[int | None, Spans] = field(default_factory=dict)

    def positions(self) -> Tensor:
        """Of the new tokens, `(B, 1)`."""
        return torch.stack([cache.positions.index_select(0, self._slot(row)) for row, cache in enumerate(self.caches)])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of the step; see `Plan`."""
        home = self.caches[0].home(layer)
        keys, values = zip(*(cache.slot_layers[home].buffers for cache in self.caches), strict=True)
        caches = Caches(keys, values, self.places[home])
        if home == layer:
            put_rows(caches, self.slots, key, value, self.backend)
        return rows_attention(query, caches, self._seen(window), softmax, self.backend)

    def _slot(self, row: int) -> Tensor:
        return self.slots[row : row + 1]

    def _seen(self, window: int | None) -> Spans:
        """Up to the token itself: what stands behind it, the cache's room, has later positions."""
        if window not in self._spans:
            own = [self._seen_by(row, window) for row in range(len(self.caches))]
            first, last = (torch.cat(ends) for ends in zip(*((one.first, one.last) for one in own), strict=True))
            self._spans[window] = Spans(first, last)
        return self._spans[window]

    def _seen_by(self, row: int, window: int | None) -> Spans:
        at, slot = self.caches[row].positions[None], self._slot(row)
        return Spans.causal(at.index_select(1, slot), at, window)


class FixedStep:
    """The steps of some answers in one company: the same launches on the same memory, token after token."""

    def __init__(self, rows: Sequence[Decoding], forward: Forward, backend: Backend) -> None:
        self._forward, self._backend = forward, backend
        self._rows = [weakref.ref(row) for row in rows]  # a recording outlives its answers, their caches do not
        self._memory, self._places = _memory(rows), _places(rows)
        device = rows[0].ids.device
        self._coming = torch.zeros(2, len(rows), dtype=torch.long, device=device)
        self._again: Callable[[], Tensor] | None = None
        self.taken = 0
        for row in rows:
            for layer in row.cache.slot_layers:
                layer.clear_room()

    def serves(self, rows: Sequence[Decoding]) -> bool:
        """Whether these are the answers, and their caches still lie where they lay."""
        same = len(rows) == len(self._rows) and all(ref() is row for ref, row in zip(self._rows, rows, strict=True))
        return same and self._memory == _memory(rows)

    def take(self, rows: Sequence[Decoding]) -> Tensor:
        """Next-token logits `(B, vocab)`, to be used before the next step; the new entries are in the caches."""
        lengths = [row.cache.get_seq_length() for row in rows]
        for row in rows:
            row.cache.require_room(1)
        coming = torch.tensor([[row.tokens[-1] for row in rows], lengths])
        self._coming.copy_(sent(coming, self._coming.device), non_blocking=True)
        logits = self._run() if self._again is None else self._again()
        for row, length in zip(rows, lengths, strict=True):
            row.cache.crop_to(length + 1)
        self.taken += 1
        return logits

    def record(self, capture: Capture) -> None:
        """Have later steps played; the last one is taken again in doing so, which changes nothing."""
        self._again = capture(self._run)

    def _run(self) -> Tensor:
        caches = [row.cache for ref in self._rows if (row := ref()) is not None]
        tokens, slots = self._coming
        plan = FixedPlan(caches, self._places, slots, self._backend)
        return self._forward(tokens[:, None], plan.positions(), plan)


def _memory(rows: Sequence[Decoding]) -> list[tuple[int, int]]:
    """Where the caches of some answers begin and end."""
    return [row.cache.slot_layers[0].place for row in rows]


def _places(rows: Sequence[Decoding]) -> list[Places]:
    """Where the caches of some answers are, layer by layer."""
    layers = zip(*(row.cache.slot_layers for row in rows), strict=True)
    return [Places.of(*zip(*(layer.buffers for layer in each), strict=True)) for each in layers]


class Recorder:
    """Takes steps of answers, recording those of a company that stays; `reason` says why it no longer does."""

    def __init__(self, forward: Forward, backend: Backend, capture: Capture) -> None:
        self._forward, self._backend, self._capture = forward, backend, capture
        self._step: FixedStep | None = None
        self.reason: str | None = None
        self.recordings = 0

    def take(self, rows: Sequence[Decoding]) -> Tensor:
        """Next-token logits `(B, vocab)` of answers that lack one token each in their caches."""
        if self._step is None or not self._step.serves(rows):
            self._step = None  # its memory first
            self._step = FixedStep(rows, self._forward, self._backend)
        logits = self._step.take(rows)
        if self._step.taken == PLAIN_STEPS and self.reason is None:
            self._record(self._step)
        return logits

    def _record(self, step: FixedStep) -> None:
        try:
            step.record(self._capture)
            self.recordings += 1
        except torch.OutOfMemoryError:
            pass  # there may be room another time
        except Exception as error:  # whatever a model does that cannot be recorded, it can be done plainly
            self.reason = f"a step could not be recorded ({type(error).__name__}: {error})"
            tell(f"Decoding runs without CUDA graphs: {self.reason}.")


class Graphs:
    """Records functions as CUDA graphs of a device, on one stream. Graphs share the memory of what they need only while
    they run; what they return is their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._keeper: torch.cuda.CUDAGraph | None = None

    def __call__(self, run: Callable[[], Result]) -> Callable[[], Result]:
        """`run` as a graph, after one run on the stream that records: what is made only once, such as a workspace for
        products, is not part of the graph. Raises RuntimeError where what is played is something else than what ran:
        a part of it may depend on the host, or take place where nobody records."""
        if self._keeper is None:
            self._begin()
        with self._aside():
            ran = run()
        graph, out = self._capture(run)
        graph.replay()
        if differ(ran, out):
            raise RuntimeError("what is played differs from what ran")

        def again() -> Result:
            graph.replay()
            return out

        return again

    def _begin(self) -> None:
        with torch.cuda.device(self._device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._keeper, _ = self._capture(lambda: torch.zeros(1, device=self._device))  # a pool goes with its last graph

    def _capture(self, run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        with self._aside(), _same_draws():
            graph = torch.cuda.CUDAGraph()
            # other threads may ask for memory meanwhile
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            finally:
                graph.capture_end()
        return graph, out

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within the block, work goes to the stream that records, after what was there before and before what comes."""
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                before.wait_stream(self._stream)


def differ(one: object, other: object) -> bool:
    """Whether results, tensors or tuples of some, differ by more than rounding."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return any(differ(*pair) for pair in zip(one, other, strict=True))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is not other
    if not one.numel():
        return False
    a, b = (torch.nan_to_num(x.float(), 0, 0, 0) for x in (one, other))
    return not torch.equal(one.isfinite(), other.isfinite()) or bool((a - b).abs().amax() > 0.1 * a.abs().amax())


@contextmanager
def _same_draws() -> Iterator[None]:
    """A recording that fails leaves the device's generator of random numbers as if it were still recorded, and it draws
    no more: it goes on from a copy then."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    spare = generator.clone_state()
    try:
        yield
    except BaseException:  # ctrl-C, too: a step that was broken off can be taken again
        generator.graphsafe_set_state(spare)
        raise
