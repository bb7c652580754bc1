"""What an answer cost up to its first token: the passes that ran, what was read and held, and the time taken."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from samkv_rag.model.narrowed import Narrow

Stage = Literal["plan", "load", "select", "recompute", "first_token"]
Moment = float | torch.cuda.Event


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass over a cache of tokens at `positions` `(T,)`, sorted; those at `slots` `(Q,)`, on any device,
    ran.

    The first `layers` layers ran; the last of them only up to its queries, keys and values if the pass `ended` there.
    On the upper ones some rows may have attended only to some tokens (`narrow`). An ordinary `prefill` ran layers
    without a cache of their own for the last row alone.
    """

    positions: Tensor
    slots: Tensor
    layers: int
    ended: bool = False
    narrow: Narrow | None = None
    prefill: bool = False

    @classmethod
    def whole(cls, tokens: int, layers: int) -> Pass:
        """An ordinary prefill of `tokens` tokens."""
        return cls(torch.arange(tokens), torch.arange(tokens), layers, prefill=True)

    def among(self, cached: bool) -> Pass:
        """The pass as it ran on layers with a cache of their own (`cached`), or on those without."""
        return self if cached or not self.prefill else Pass(self.positions, self.slots[-1:], self.layers)

    def narrowed(self, layer: int) -> bool:
        """Whether some rows attend only to some tokens on this layer."""
        return self.narrow is not None and layer >= self.narrow.layer

    @property
    def parts(self) -> tuple[Pass | None, Pass]:
        """The rows that narrowed layers limit, among the tokens that they attend to, and the other rows, among all; or
        None, and the pass itself, where no row is limited."""
        narrow = self.narrow
        if narrow is None or not narrow.rows or len(self.slots) == len(self.positions):
            return None, self
        slots = self.slots.cpu()
        seen = narrow.sees(slots)
        inner = Pass(self.positions[seen], torch.searchsorted(seen, slots[: narrow.rows]), self.layers)
        return inner, Pass(self.positions, slots[narrow.rows :], self.layers, self.ended)

    def pairs(self, window: int | None) -> int:
        """How many pairs (row, token that it attends to) a layer has that is not narrowed; a sliding `window` limits
        each row."""
        slots = self.slots.cpu()
        seen = slots.long() + 1
        if window is not None:
            hidden = torch.searchsorted(self.positions, self.positions[slots] - window, right=True)
            seen = seen - hidden
        return int(seen.sum())


@dataclass(slots=True)
class Costs:
    """The ledger of one run on `device`, written as things happen.

    Tokens that question passes ran, bytes of entries and summaries that were scored, the largest cache before the
    first token, chunk tokens computed times the layers that computed them, all passes, and seconds by stage.
    """

    device: torch.device
    question_pass_tokens: int = 0
    scored_bytes: int = 0
    kv_bytes_peak: int = 0
    chunk_token_layers: int = 0
    passes: list[Pass] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _spans: list[tuple[Stage, Stage | None, Moment, Moment]] = field(default_factory=list)
    _open: Stage | None = None

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Charge the block's wall-clock time to a stage of the report: on a GPU the GPU's own, without waiting for it
        here. A stage within another is not charged to the outer one."""
        begin, outer = self._now(), self._open
        self._open = name
        try:
            yield
        finally:
            self._open = outer
            self._spans.append((name, outer, begin, self._now()))

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage; to be read when all is done. On a GPU this waits until the stages have ended there."""
        for name, outer, begin, end in self._spans:
            took = _seconds_between(begin, end)
            self._seconds[name] += took
            if outer is not None:
                self._seconds[outer] -= took
        self._spans.clear()
        return self._seconds

    def held(self, cache_bytes: int) -> None:
        """Record that a cache of `cache_bytes` is held at once."""
        self.kv_bytes_peak = max(self.kv_bytes_peak, cache_bytes)


def _seconds_between(begin: Moment, end: Moment) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return end - begin  # type: ignore[operator]
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
