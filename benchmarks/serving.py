"""Answers within a fixed budget of keys and values: how many fit, and tokens per second. `python -m benchmarks.serving`

Every system serves as many questions over the same chunks as fit `--budget` MiB: the caches that answers hold, buffers
with their room included, plus the largest cache that preparing one more takes. They are prepared one after another,
then decoded together to the end. All systems take turns in one process, on a random 12 x 768 Llama. Nothing is
reported when the exactness gate is red, when the budget was exceeded, or when an answer (in float32) differs from the
same answer decoded alone.

`decode_full_over` compares decoding alone, which the budget decides; `full_over` the whole, including preparation. The
budget counts keys and values, as servers do: `benchmarks.memory` measures all that an answer takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.decode import finish
from benchmarks.harness import in_turns, opened, options_of, publish
from benchmarks.rows import quantiles, where
from benchmarks.shapes import random_prompt
from benchmarks.systems import METHODS
from samkv_rag.methods import Method, Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.decoding import Decoding
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Question

MIB = 2**20


@dataclass(frozen=True)
class Begun:
    """An answer that holds its final cache, and the bytes of the largest cache that preparing it took."""

    decoding: Decoding
    peak: int

    @property
    def held(self) -> int:
        """Bytes of the buffers that hold its keys and values, room included, and of packed ones."""
        cache = self.decoding.cache
        storages = [x.untyped_storage() for one in cache.slot_layers for x in (one.keys, one.values) if x is not None]
        packed = 0 if cache.packed is None else cache.packed.nbytes
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) + packed


@dataclass(frozen=True)
class Served:
    """What one system did with the budget, in seconds, bytes and new tokens."""

    answers: int
    tokens: int
    prepared: int
    preparing: float
    decoding: float
    held: int


@dataclass(frozen=True)
class Bench:
    """One prompt's chunks, asked about again and again by one model within `budget` bytes, `new` tokens per answer."""

    adapter: ModelAdapter
    store: ChunkKVStore
    plan: PromptPlan
    budget: int
    new: int

    def question(self, number: int) -> PromptPlan:
        """The plan with another question of random ids."""
        draws, last = torch.Generator().manual_seed(number), self.plan.segments[-1]
        vocab = self.adapter.config.vocab_size
        ids = tuple(torch.randint(3, vocab, (len(last.token_ids),), generator=draws).tolist())
        segments = (*self.plan.segments[:-1], replace(last, token_ids=ids))
        return PromptPlan(segments, Question("", ids, last.start))

    def begin(self, method: Method, number: int) -> Begun:
        """Prepare an answer up to its first token, or to the token with which it is decided what is kept."""
        run = Run(self.question(number), self.adapter, self.store, room=self.new)
        prepared = method.prepare(run)
        decoding = prepared.begin(self.adapter.loop, max_new_tokens=self.new, do_sample=False)
        while decoding.due and not decoding.ended:
            self.adapter.loop.step([decoding])
        return Begun(decoding, run.costs.kv_bytes_peak)

    def fitting(self, one: Begun, most: int) -> int:
        """How many answers like `one` fit: all but the last hold their caches while the last is prepared."""
        largest = max(one.held, one.peak)
        if largest > self.budget:
            raise SystemExit(f"One answer takes {largest / MIB:.0f} MiB: the budget is too small, nothing is reported.")
        return min(most, (self.budget - largest) // one.held + 1)

    def serve(self, method: Method, answers: int, alone: Sequence[int]) -> Served:
        """Prepare `answers` answers and decode them together; the first must have the tokens that it has `alone`."""
        start = time.perf_counter()
        begun = [self.begin(method, number) for number in range(answers)]
        preparing, held = time.perf_counter() - start, sum(one.held for one in begun)
        prepared = sum(len(one.decoding.tokens) for one in begun)
        decoding = finish(self.adapter, [[one.decoding for one in begun]], time.perf_counter)
        said = [one.decoding.result() for one in begun]
        if held > self.budget:
            raise SystemExit(f"{held / MIB:.0f} MiB were held: the budget was exceeded, nothing is reported.")
        if self.adapter.dtype == torch.float32 and said[0] != alone:
            raise SystemExit("An answer decoded with others differs from itself alone: nothing is reported.")
        return Served(answers, sum(map(len, said)), prepared, preparing, decoding, held)


def measure(
    bench: Bench, systems: Sequence[str], rounds: int, most: int, warm_ups: int = 0
) -> dict[str, list[Served]]:  # fmt: skip
    """What every system did, in `rounds` interleaved rounds; one answer alone of each warms up, and `warm_ups` rounds:
    steps of that many answers are recorded when they recur."""
    ways = {}
    for name in systems:
        one = bench.begin(METHODS[name], 0)
        answers = bench.fitting(one, most)
        finish(bench.adapter, [[one.decoding]], time.perf_counter)
        ways[name] = partial(bench.serve, METHODS[name], answers, one.decoding.result())
    return in_turns(ways, rounds, warm_ups)


def rows(label: str, tokens: int, bench: Bench, seen: dict[str, list[Served]], device: str) -> list[dict[str, Any]]:
    """One row per system: answers that fit, tokens per second while decoding and overall, and their ratios to full."""
    out = []
    full = {key: timing[f"median_{key}"] for key, timing in _rates(seen["full"]).items()}
    for name, found in seen.items():
        rates = _rates(found)
        row: dict[str, Any] = {"model": label, "tokens": tokens, "budget_mib": bench.budget / MIB, "method": name}
        row |= {"answers": found[0].answers, "held_mib": found[0].held / MIB, **rates["decode_tps"], **rates["tps"]}
        row["decode_full_over"] = rates["decode_tps"]["median_decode_tps"] / full["decode_tps"]
        row["full_over"] = rates["tps"]["median_tps"] / full["tps"]
        out.append(row | {"new_tokens": bench.new, "rounds": len(found)} | where(device))
    return out


def _rates(found: Sequence[Served]) -> dict[str, dict[str, float]]:
    """Tokens per second of decoding alone, after the prepared ones, and of the whole."""
    decoding = [(one.tokens - one.prepared) / one.decoding for one in found]
    whole = [one.tokens / (one.preparing + one.decoding) for one in found]
    return {"decode_tps": quantiles(decoding, "decode_tps"), "tps": quantiles(whole, "tps")}


def main() -> None:
    parser = options_of(__doc__, rounds=3, devices=True, models=["random", "8b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024])
    parser.add_argument("--budget", type=int, default=64, help="MiB of keys and values")
    parser.add_argument("--new", type=int, default=32, help="tokens of every answer")
    parser.add_argument("--most", type=int, default=64, help="answers at once, however small")
    parser.add_argument("--systems", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    adapter, store = opened(options), ChunkKVStore(":memory:")
    systems = [name for name in METHODS if name == "full" or name in options.systems]
    for tokens in options.tokens:
        plan = random_prompt(adapter, store, 8, tokens // 8)
        bench = Bench(adapter, store, plan, options.budget * MIB, options.new)
        seen = measure(bench, systems, options.rounds, options.most)
        publish("serving", rows(options.model, tokens, bench, seen, options.device), 14, options.dry)


if __name__ == "__main__":
    main()
