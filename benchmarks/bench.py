"""One model past the gate, its prompts of several sizes, and the time left: what `benchmarks.gpu` works with."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.harness import gated, publish
from benchmarks.rows import write_rows
from benchmarks.shapes import model_named, random_prompt
from samkv_kernels.backend import VARIABLE
from samkv_rag.errors import ParityError
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.recorded import Passes
from samkv_rag.model.steps import Recorder
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan

T = TypeVar("T")


@dataclass
class Bench:
    """One model and its prompts of several sizes; `stop` is when the call must be over (`time.perf_counter`)."""

    label: str
    device: str
    out: Path
    stop: float
    new: int
    budget: int
    stored: dict[int, tuple[PromptPlan, ChunkKVStore]] = field(default_factory=dict)

    @cached_property
    def adapter(self) -> ModelAdapter:
        """The model, once reuse has been shown to be exact on it; if our kernels fail, without them, with a notice."""
        try:
            return self._plain(self._gated())
        except Exception:
            if os.environ.get(VARIABLE) == "torch":
                raise
            traceback.print_exc(file=sys.stdout)
        print("THE GATE IS RED: once more with the backend torch, for all that follows")
        os.environ[VARIABLE] = "torch"
        self.tidy()
        try:
            return self._plain(self._gated())
        except Exception:
            self.stop = time.perf_counter()  # nothing may be reported of this model: what follows is skipped
            raise

    @staticmethod
    def _plain(adapter: ModelAdapter) -> ModelAdapter:
        """The model, which records nothing except within `recorded`."""
        adapter.passes = adapter.loop.recorder = None
        return adapter

    def _gated(self) -> ModelAdapter:
        start = time.perf_counter()
        adapter = model_named(self.label, self.device)
        print(f"model made in {time.perf_counter() - start:.1f} s, backend {adapter.backend}")
        try:
            return gated(self.label, adapter)
        except ParityError as error:
            if not self.label.startswith("8b"):
                raise
            print(f"{error}\nRandom weights of 32 layers swell the rounding of bfloat16: float32 decides.")
        gated("8b-shallow", model_named("8b-shallow", self.device))
        return adapter

    @cached_property
    def recordings(self) -> tuple[Passes | None, Recorder | None]:
        """Recorded passes and recorded steps, where recording is possible."""
        if self.device != "cuda":
            return None, None
        self.adapter.record()
        made = self.adapter.passes, self.adapter.loop.recorder
        self._plain(self.adapter)
        return made

    @property
    def passes(self) -> Passes | None:
        """Recorded passes, where recording is possible."""
        return self.recordings[0]

    def recorded(self, way: Callable[[], T]) -> T:
        """What `way` returns when it prepares its prompt with recorded passes and decodes with recorded steps."""
        self.adapter.passes, self.adapter.loop.recorder = self.recordings
        try:
            return way()
        finally:
            self._plain(self.adapter)

    def left(self) -> float:
        """Seconds left."""
        return self.stop - time.perf_counter()

    def prompt(self, tokens: int) -> tuple[PromptPlan, ChunkKVStore]:
        """A prompt of `tokens` in chunks of 512 or 1,024, stored where the model runs; only the latest is kept."""
        if tokens not in self.stored:
            self.stored.clear()
            self.tidy()
            size = min(512 if tokens < 8192 else 1024, tokens // 4)
            store, start = ChunkKVStore(":memory:", device=self.device), time.perf_counter()
            self.stored[tokens] = random_prompt(self.adapter, store, tokens // size, size), store
            print(f"{tokens // size} chunks of {size} tokens stored in {time.perf_counter() - start:.1f} s")
        return self.stored[tokens]

    def tidy(self) -> None:
        """Free the memory that the last part left behind."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def save(self, name: str, rows: Sequence[Mapping[str, Any]], shown: int) -> None:
        """Print the first `shown` columns and write all of them."""
        publish(name, rows, shown, dry=True)
        write_rows(name, rows, self.out)


def in_turns_within(ways: Mapping[str, Callable[[], T]], seconds: float, most: int) -> dict[str, list[T]]:
    """What every way returns in up to `most` interleaved rounds, as many as `seconds` allow but at least one, after a
    warm-up round."""
    for way in ways.values():
        way()
    seen: dict[str, list[T]] = defaultdict(list)
    start, took = time.perf_counter(), 0.0
    while len(seen[next(iter(ways))]) < most and time.perf_counter() - start + took < seconds or not seen:
        begun = time.perf_counter()
        for name, way in ways.items():
            seen[name].append(way())
        took = time.perf_counter() - begun
    return dict(seen)
