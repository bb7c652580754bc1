"""Decoding steps of fixed sizes, recorded as CUDA graphs: a GPU replays a step without the host.

A step of an 8B model is 1,200 launches; the host takes 25 ms and more to make them, the GPU 6 ms to carry them out.
Steps of as many rows are the same launches, whichever answers are in the rows: where a row's cache is, its new token,
where that goes and what it attends to are read from tensors that are written before each step. Answers join and leave;
what was recorded for their number is replayed. Empty rows share a cache of one slot and attend to that alone.

Recorded or not, the steps of an answer are the same function, so its tokens do not depend on when a recording began.
They attend by our kernel where a step that is not fixed uses SDPA: the two differ by rounding.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.rows_attention import Caches, PackedPlaces, PackedRows, Places, put_rows, rows_attention
from samkv_kernels.sending import sent
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans
from samkv_rag.model.attention import Plan
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.graphs import Graphs, obstacle, tell
from samkv_rag.model.latest import remember
from samkv_rag.model.seats import Seat, Sizes, Spare

PLAIN_STEPS = 2
"""Steps of the same sizes before they are recorded, which takes as long as two: short-lived sizes are not worth it."""
MOST = 48
"""Recordings kept at most, those used last: answers that join, are packed and leave make many sizes together."""
REST = 100
"""Steps until memory that ran short is asked for again."""
LATER = torch.iinfo(torch.long).max

Forward = Callable[[Tensor, Tensor, Plan], Tensor]
"""Next-token logits `(B, vocab)` of tokens `(B, 1)` at positions `(B, 1)` under a plan that keeps the caches."""
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records a function: the one it returns does the same work again and returns the same tensor."""


def recorder_of(
    forward: Forward, empty: Callable[[int], SlotCache], backend: Backend, device: torch.device, unfit: str | None
) -> Recorder | None:
    """The recorder of a model's steps, if they can be recorded; a warning says what prevents it. See `Loop` for
    `empty`."""
    why_not = obstacle(backend, device, unfit)
    if why_not is None:
        return Recorder(forward, backend, Graphs(device), empty)
    tell(f"Decoding runs without CUDA graphs: {why_not}.")
    return None


@dataclass(frozen=True, slots=True)
class Packing:
    """What caches hold packed: a `table` `(L, B, 8)`, which `places` read layer by layer, and `positions` `(B, N)` that
    are padded with later ones."""

    table: Tensor
    places: Sequence[PackedPlaces]
    positions: Tensor

    @classmethod
    def of(cls, sizes: Sizes, spare: Spare) -> Packing:
        """For no answers yet."""
        device = spare.codes.device
        table = torch.zeros(len(spare.cache.slot_layers), sizes.rows, 8, dtype=torch.long, device=device)
        places = [PackedPlaces(spare.codes, spare.steps, layer, sizes.hint, sizes.packed) for layer in table]
        return cls(table, places, torch.full((sizes.rows, sizes.packed), LATER, device=device))


@dataclass(frozen=True, slots=True)
class FixedPlan:
    """One new token for each of several caches, at their `slots` `(B,)`. It attends to its cache up to itself:
    `positions` `(B, T)`, the caches', are padded with later ones. `places`: where the caches are, by layer.

    How a row's keys are split among programs depends on the number of rows: its last bits depend on its company.
    """

    caches: Sequence[SlotCache]
    places: Sequence[Places]
    positions: Tensor
    slots: Tensor
    backend: Backend
    packed: Packing | None = None
    _spans: dict[int | None, Spans] = field(default_factory=dict)
    _packed_spans: dict[int | None, Spans] = field(default_factory=dict)

    def here(self) -> Tensor:
        """Positions of the new tokens, `(B, 1)`."""
        return self.positions.gather(1, self.slots[:, None])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None
    ) -> Tensor:
        """One layer of the step; see `Plan`."""
        home = self.caches[0].home(layer)
        keys, values = zip(*(cache.slot_layers[home].buffers for cache in self.caches), strict=True)
        caches = Caches(keys, values, self.places[home])
        if home == layer:
            put_rows(caches, self.slots, key, value, self.backend)
        packed = None if self.packed is None else self._beside(self.packed, home, window)
        return rows_attention(query, caches, self._seen(window), softmax, self.backend, packed)

    def _seen(self, window: int | None) -> Spans:
        if window not in self._spans:
            self._spans[window] = Spans.causal(self.here(), self.positions, window)
        return self._spans[window]

    def _beside(self, packed: Packing, home: int, window: int | None) -> PackedRows:
        if window not in self._packed_spans:
            self._packed_spans[window] = Spans.causal(self.here(), packed.positions, window)
        layers = [None if cache.packed is None else cache.packed.layers[home] for cache in self.caches]
        return PackedRows(layers, packed.places[home], self._packed_spans[window])


class FixedStep:
    """Steps of fixed sizes: the same launches on the same memory, token after token, whichever answers take part."""

    def __init__(self, sizes: Sizes, spare: Spare, seat: Seat, forward: Forward, backend: Backend) -> None:
        self._forward, self._backend = forward, backend
        self._spare, self._nobody = spare.cache, seat
        device, layers = spare.codes.device, spare.cache.slot_layers
        self._coming = torch.zeros(2, sizes.rows, dtype=torch.long, device=device)
        self._positions = torch.arange(sizes.slots, device=device).repeat(sizes.rows, 1)
        self._table = torch.zeros(len(layers), sizes.rows, 4, dtype=torch.long, device=device)
        self._places = [
            Places(*layer.buffers, table, sizes.hint, sizes.slots)
            for layer, table in zip(layers, self._table, strict=True)
        ]
        self._packed = Packing.of(sizes, spare) if sizes.packed else None
        self._seats, self._company = [seat] * sizes.rows, list[Seat]()
        self._order = list[int]()
        self._sorting: Tensor | None = None
        self._again: Callable[[], Tensor] | None = None
        self.taken = 0

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._again is not None

    def take(self, rows: Sequence[Decoding], seats: list[Seat]) -> Tensor:
        """Next-token logits `(B, vocab)`, to be used before the next step; the new entries are in the caches."""
        for row in rows:
            row.cache.require_room(1)
        if self._company != seats:
            self._receive(seats)
        self._send(rows)
        logits = self._run() if self._again is None else self._again()
        for row in rows:
            row.cache.crop_to(row.cache.slot_layers[0].length + 1)
        self.taken += 1
        return logits[: len(rows)] if self._sorting is None else logits.index_select(0, self._sorting)

    def record(self, capture: Capture) -> None:
        """Have later steps replayed; this takes the last one again, which changes nothing."""
        self._again = capture(self._run)

    def _receive(self, seats: list[Seat]) -> None:
        """Answers that were here keep their rows; new ones take free rows."""
        self._company, coming = [], set(seats)  # none, if this is interrupted
        self._seats = [seat if seat in coming else self._nobody for seat in self._seats]
        free = iter([row for row, seat in enumerate(self._seats) if seat is self._nobody])
        there = {seat: row for row, seat in enumerate(self._seats)}
        self._order = [there[seat] if seat in there else self._sit(next(free), seat) for seat in seats]
        as_asked = self._order == list(range(len(seats)))
        self._sorting = None if as_asked else sent(torch.tensor(self._order), self._table.device)
        self._write(self._table, [seat.table for seat in self._seats])
        if self._packed is not None:
            self._write(self._packed.table, [seat.packed for seat in self._seats])
        self._company = list(seats)

    def _write(self, table: Tensor, rows: list[Tensor]) -> None:
        table.copy_(sent(torch.stack(rows, dim=1), table.device), non_blocking=True)

    def _sit(self, row: int, seat: Seat) -> int:
        """Give a row to an answer. Leaving it needs no tidying up: the first slot of any cache attends to itself
        alone."""
        cache = seat.cache()
        assert cache is not None
        _fill(self._positions[row], cache.positions)
        if self._packed is not None:
            packed = cache.positions[:0] if cache.packed is None else cache.packed.positions
            _fill(self._packed.positions[row], packed)
        self._seats[row] = seat
        return row

    def _send(self, rows: Sequence[Decoding]) -> None:
        """Write the new tokens and where they go; in an empty row, any token at the first slot."""
        tokens, slots = ([0] * len(self._seats) for _ in range(2))
        for index, row in zip(self._order, rows, strict=True):
            tokens[index], slots[index] = row.tokens[-1], row.cache.slot_layers[0].length
        self._coming.copy_(sent(torch.tensor([tokens, slots]), self._coming.device), non_blocking=True)

    def _run(self) -> Tensor:
        caches = [self._spare if (cache := seat.cache()) is None else cache for seat in self._seats]
        tokens, slots = self._coming
        plan = FixedPlan(caches, self._places, self._positions, slots, self._backend, self._packed)
        return self._forward(tokens[:, None], plan.here(), plan)


def _fill(positions: Tensor, own: Tensor) -> None:
    """Write as many positions as there is room for, and after them one that is later than all."""
    count = min(len(own), len(positions))
    positions[:count], positions[count:] = own[:count], LATER


class Recorder:
    """Takes steps of answers; sizes that last are recorded. `reason` says why nothing is recorded any more. `empty(1)`
    makes the cache of the empty rows."""

    def __init__(
        self, forward: Forward, backend: Backend, capture: Capture, empty: Callable[[int], SlotCache]
    ) -> None:  # fmt: skip
        self._forward, self._backend, self._capture, self._empty = forward, backend, capture, empty
        self._spare: tuple[Spare, Seat] | None = None
        self._seats = weakref.WeakKeyDictionary[SlotCache, Seat]()
        self._fixed = OrderedDict[Sizes, FixedStep]()
        self.reason: str | None = None
        self.recordings = 0

    def take(self, rows: Sequence[Decoding]) -> Tensor:
        """Next-token logits `(B, vocab)` of answers whose caches lack one token each."""
        if self._spare is None:
            spare = Spare.of(self._empty(1))
            self._spare = spare, Seat.of(spare.cache, spare)
        spare, nobody = self._spare
        seats = [self._seat(row.cache, spare) for row in rows]
        sizes = Sizes.of(seats, nobody)
        step = self._fixed.get(sizes) or FixedStep(sizes, spare, nobody, self._forward, self._backend)
        remember(self._fixed, sizes, step, MOST)
        logits = step.take(rows, seats)
        if step.taken >= PLAIN_STEPS and not step.recorded and self.reason is None:
            self._record(sizes, step)
        return logits

    def _seat(self, cache: SlotCache, spare: Spare) -> Seat:
        """A cache's seat, made anew when the cache has moved."""
        seat = self._seats.get(cache)
        if seat is None or seat.memory != cache.slot_layers[0].place:
            seat = self._seats[cache] = Seat.of(cache, spare)
            cache.clear_room()
        return seat

    def _record(self, sizes: Sizes, step: FixedStep) -> None:
        try:
            step.record(self._capture)
            self.recordings += 1
        except torch.OutOfMemoryError:
            self._fixed.clear()
            self._fixed[sizes], step.taken = step, -REST  # there may be memory another time
        except Exception as error:  # what cannot be recorded of a model can be run plainly
            self.reason = f"a step could not be recorded ({type(error).__name__}: {error})"
            tell(f"Decoding runs without CUDA graphs: {self.reason}.")
