"""Run one system in a process of its own, for `benchmarks.memory`: its last line has what one answer takes, in JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections import deque
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.harness import gated
from benchmarks.prompts import conversation, word_tokenizer
from benchmarks.shapes import random_model
from benchmarks.systems import METHODS
from samkv_rag import ChunkKVStore, SamKVEngine
from samkv_rag.errors import SamKVError

FILL, NOTHING = "fill the store", "model alone"
WARM_UP = 64
PIECES = 4
CHILDREN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc settings that return freed tensors to the system at once: else a peak would hide in what was freed before."""


@dataclass(frozen=True)
class Reading:
    """Bytes: what the process took before the question, its peak above that, and what it held above that when the first
    pieces of the answer had come. `digest` is that of the prompt's token ids, the same for every system."""

    model: int
    peak: int
    held: int
    digest: str = ""


class Gauge(Protocol):
    """Memory in use now, and the most since `restart`, in bytes."""

    def restart(self) -> None: ...

    def now(self) -> int: ...

    def peak(self) -> int: ...


class ResidentSet:
    """The memory of this process, as the kernel counts it (Linux)."""

    def restart(self) -> None:
        """Forget the peak."""
        self.now()
        Path("/proc/self/clear_refs").write_text("5")

    def now(self) -> int:
        """What is resident, after giving back freed memory."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return self._line("VmRSS")

    def peak(self) -> int:
        """The high-water mark."""
        return self._line("VmHWM")

    def _line(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


class CudaAllocator:
    """The memory of torch's allocator on the GPU."""

    def restart(self) -> None:
        """Forget the peak."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Bytes of live tensors."""
        gc.collect()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes of live tensors."""
        return torch.cuda.max_memory_allocated()


def gauge_of(device: str) -> Gauge:
    """The gauge that counts memory on `device`."""
    return CudaAllocator() if device == "cuda" else ResidentSet()


def read(engine: SamKVEngine, system: str, tokens: int, new: int, gauge: Gauge) -> Reading:
    """Warm up with a short prompt, then ask the long one; summaries are resident beforehand, for every system."""
    method, messages = METHODS.get(system), conversation(tokens)[1]
    engine.generate(conversation(WARM_UP)[1], method=method, max_new_tokens=2)
    engine.plan(messages)
    gauge.restart()
    before = gauge.now()
    if method is None:
        return Reading(before, gauge.peak() - before, gauge.now() - before)
    stream = engine.stream(messages, method=method, max_new_tokens=new)
    deque(islice(stream, PIECES), 0)  # nothing is packed before the second token
    held = gauge.now()
    report = stream.answer.report
    if report.misses or not report.chunk_tokens:
        raise SamKVError("The prompt's chunks are not in the store: nothing is reported.")
    return Reading(before, gauge.peak() - before, held - before, report.prompt_digest)


def fill(engine: SamKVEngine, tokens: int) -> Reading:
    """Store the chunks of both prompts, once the exactness gate is green."""
    gated("random", engine.adapter)
    for size in (WARM_UP, tokens):
        engine.precompute(conversation(size)[0])
    return Reading(0, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("system", choices=[FILL, NOTHING, *METHODS])
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = random_model(device=options.device).model
    engine = SamKVEngine.from_pretrained(model, word_tokenizer(), ChunkKVStore(options.folder))
    if options.system == FILL:
        reading = fill(engine, options.tokens)
    else:
        reading = read(engine, options.system, options.tokens, options.new, gauge_of(options.device))
    print(json.dumps(asdict(reading)))


if __name__ == "__main__":
    main()
