"""Where the time to the first token goes, pass by pass, against the least it could be. `python -m benchmarks.stages`

Every pass through the model is timed on its own: the question's look, the recompute, the first token (or the prefill).
What remains of a system's time is its overhead: loading and rotating entries, scores and selection, the rest. A pass
has a floor: its operations (`samkv_rag.flops`) at the rate of the model's own matrix products over many rows, or the
bytes of its weights at the rate at which a product with one vector reads them, whichever takes longer; both rates are
measured in the same run. Nothing is reported when the exactness gate is red. `overhead_share` is loading and scoring
as a share of the time to the first token, which should be below 10 %; `--strict` exits with 1 if SamKV is above it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.harness import in_turns, opened, options_of, publish, wait
from benchmarks.rows import quantiles, where
from benchmarks.shapes import random_prompt
from benchmarks.systems import METHODS
from samkv_rag.flops import pass_flops
from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.methods.costs import Pass
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan

GOAL = 0.1
PASSES = ("look", "recompute", "first_token")


@dataclass(frozen=True)
class Rates:
    """What the machine achieves at best: operations, and bytes read, per second."""

    flops: float
    read: float

    @classmethod
    def measured(cls, adapter: ModelAdapter, rows: int, rounds: int = 5) -> Rates:
        """Measure them, on the model's largest matrix over `rows` rows, and on all its layers' weights over one."""
        matrix = max((p for p in adapter.decoder.layers.parameters() if p.ndim == 2), key=lambda p: p.numel()).detach()
        tokens = torch.randn(rows, matrix.shape[1], dtype=matrix.dtype, device=adapter.device)
        weights = torch.cat([p.detach().flatten() for p in adapter.decoder.layers.parameters() if p.ndim == 2])
        product = _fastest(lambda: tokens @ matrix.T, adapter.device, rounds)
        width = matrix.shape[1]
        tall = weights[: len(weights) // width * width].view(-1, width)
        reading = _fastest(lambda: tall @ tokens[0], adapter.device, rounds)
        return cls(2 * rows * matrix.numel() / product, tall.nbytes / reading)

    def floor(self, flops: int, weight_bytes: int) -> float:
        """The fewest seconds that a pass can take."""
        return max(flops / self.flops, weight_bytes / self.read)


def _fastest(do: Any, device: torch.device, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        do()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@dataclass
class Clocked:
    """One question's seconds and floors: `spent` and `floors` by name of the pass, `load`, and what scoring took."""

    total: float = 0.0
    load: float = 0.0
    score: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)

    @property
    def overhead(self) -> float:
        """Loading and scoring as a share of the whole."""
        return (self.load + self.score) / self.total


@contextmanager
def clocked_passes(adapter: ModelAdapter) -> Iterator[list[float]]:
    """Within the block every pass over a prepared cache appends its seconds to the list."""
    seconds: list[float] = []
    original = adapter.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        wait(adapter.device)
        start = time.perf_counter()
        out = original(*args, **kwargs)
        wait(adapter.device)
        seconds.append(time.perf_counter() - start)
        return out

    adapter.forward = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del adapter.forward


def clock(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan, method: Method, rates: Rates) -> Clocked:
    """Time one question up to its first token, pass by pass."""
    run, out = Run(plan, adapter, store, room=1), Clocked()
    start = time.perf_counter()
    with clocked_passes(adapter) as seconds:
        prepared = method.prepare(run)
    begun = time.perf_counter()
    prepared.generate(adapter.loop, max_new_tokens=1, do_sample=False)
    ended = time.perf_counter()
    out.total = ended - start
    if prepared.cache is None:
        seconds = [ended - begun]
    for (name, one), took in zip(passes_of(run, prepared), seconds, strict=True):
        out.spent[name] = out.spent.get(name, 0.0) + took
        out.floors[name] = out.floors.get(name, 0.0) + floor_of(adapter, one, rates)
    out.load, out.score = run.costs.seconds["load"], max(0.0, run.costs.seconds["select"] - out.spent.get("look", 0.0))
    return out


def passes_of(run: Run, prepared: Prepared) -> list[tuple[str, Pass]]:
    """The passes through the model, by name: looks, the recompute, and the first token if that took a pass of its own
    (or the prefill)."""
    passes = list(run.costs.passes)
    alone = prepared.cache is None or len(passes[-1].slots) == 1
    last = [("first_token", passes.pop())] if alone else []
    return [*(("look", one) for one in passes[:-1]), *(("recompute", one) for one in passes[-1:]), *last]


def floor_of(adapter: ModelAdapter, one: Pass, rates: Rates) -> float:
    """The floor of a pass, including the output matrix if the pass did not end early."""
    flops, layers = pass_flops(adapter, [one]), list(adapter.decoder.layers)[: one.layers - one.ended]
    nbytes = sum(p.nbytes for layer in layers for p in layer.parameters() if p.ndim == 2)
    if not one.ended:
        output = adapter.model.get_output_embeddings().weight
        flops, nbytes = flops + 2 * output.numel(), nbytes + output.nbytes
    return rates.floor(flops, nbytes)


def rows(label: str, tokens: int, rates: Rates, seen: dict[str, list[Clocked]], device: str) -> list[dict[str, Any]]:
    """One row per system: every pass and its floor, loading, scoring, and what is above the floors."""
    out = []
    for name, found in seen.items():
        row: dict[str, Any] = {"model": label, "tokens": tokens, "method": name, "ttft_ms": _median(found, "total")}
        for part in PASSES:
            row[f"{part}_ms"] = _middle([1e3 * one.spent.get(part, 0.0) for one in found])
            row[f"{part}_floor_ms"] = _middle([1e3 * one.floors.get(part, 0.0) for one in found])
        row |= {"load_ms": _median(found, "load"), "score_ms": _median(found, "score")}
        row["over_floor"] = row["ttft_ms"] / sum(row[f"{part}_floor_ms"] for part in PASSES)
        row |= quantiles([one.overhead for one in found], "overhead_share")
        row |= {"gflops_per_second": rates.flops / 1e9, "read_gb_per_second": rates.read / 1e9}
        out.append(row | {"rounds": len(found)} | where(device))
    return out


def _median(found: Sequence[Clocked], name: str) -> float:
    return _middle([1e3 * getattr(one, name) for one in found])


def _middle(values: Sequence[float]) -> float:
    return quantiles(values, "ms")["median_ms"]


def main() -> int:
    parser = options_of(__doc__, rounds=5, devices=True, models=["bundled", "random", "8b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--systems", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--strict", action="store_true", help="end with 1 when the goal is missed")
    options = parser.parse_args()
    adapter, store = opened(options), ChunkKVStore(":memory:")
    missed = []
    for tokens in options.tokens:
        plan, rates = random_prompt(adapter, store, 8, tokens // 8), Rates.measured(adapter, tokens)
        ways = {name: partial(clock, adapter, store, plan, METHODS[name], rates) for name in options.systems}
        found = rows(options.model, tokens, rates, in_turns(ways, options.rounds), options.device)
        publish("stages", found, 16, options.dry)
        missed += [f"{row['method']} at {tokens}" for row in found if row["median_overhead_share"] > GOAL]
    print(f"loading and scoring above {GOAL:.0%} of the time: {', '.join(missed) or 'none'}")
    return int(options.strict and any(name.startswith("samkv") for name in missed))


if __name__ == "__main__":
    sys.exit(main())
