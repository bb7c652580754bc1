"""Decoding: milliseconds per token and tokens per second of 1, 4 and 8 answers, together and one after another, over
whole caches, over kept ones, and over whole ones, or most of them, in 4 bits per number. `python -m benchmarks.decode`

On a random 12 x 768 Llama, or with `--model random-latent` on a DeepSeek of that size, over caches of random keys and
values of a prompt's size: their contents do not change the time. All variants take turns in one process. Nothing is
reported when the exactness gate is red, or when answers decoded together differ from those decoded alone. The number
that counts is the ratio within one run.
`--clock cpu` counts processor time instead of wall time: with one thread they are the same on an idle machine, and
processor time is usable on a busy one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import gated, options_of, publish
from benchmarks.rows import spread, where
from benchmarks.shapes import model_named
from samkv_kernels.rope_gather import Stored
from samkv_rag.errors import SamKVError
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.decoding import Decoding
from samkv_rag.model.filling import Part

CACHES = {"full cache": (1.0, False), "kept 15 %": (0.15, False), "all, int4": (1.0, True), "70 %, int4": (0.7, True)}
"""The share that is held, and whether in four bits."""
ORDERS = ("together", "one after another")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Seen = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Packing:
    """Packs the first `tokens` of a cache after the first token of an answer."""

    adapter: ModelAdapter
    tokens: int
    after: int = 1

    def settle(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        """See `Settling`."""
        logits = self.adapter.logits_of(tokens, cache)
        here = torch.arange(cache.get_seq_length(), device=self.adapter.device)
        cache.keep(here[self.tokens :], here[: self.tokens])
        return logits[-1]


def begin(adapter: ModelAdapter, tokens: int, kept: float, new: int, seed: int, packed: bool = False) -> Decoding:
    """An answer of `new` tokens plus one that is already decoded, over the kept share of a prompt of `tokens`. With
    `packed`, two are already decoded, and all but the last 96 tokens of that share are packed."""
    generator, count = torch.Generator().manual_seed(seed), round(kept * tokens)
    ids = torch.randint(3, adapter.config.vocab_size, (count,), generator=generator).tolist()
    positions = torch.linspace(0, tokens - 1, count).long()[:-1]
    (stack,) = adapter.shape.stacks
    shape = (2, len(stack.layers), stack.kv_heads, count - 1, stack.head_dim)
    keys, values = torch.randn(shape, generator=generator)
    stored = Stored(keys[:, None], values[:, None])  # one block that holds all tokens
    cache = adapter.assemble(lambda _: [Part(0, [stored], torch.arange(count - 1))], positions, room=new + 3)
    settling = Packing(adapter, max(count - 96, 1)) if packed else None
    decoding = adapter.loop.begin(ids, cache, settling=settling, max_new_tokens=new + 1 + packed, do_sample=False)
    if packed:
        adapter.loop.step([decoding])
    return decoding


def finish(adapter: ModelAdapter, groups: Sequence[Sequence[Decoding]], clock: Callable[[], float]) -> float:
    """Seconds until all answers have ended, decoding group after group and the members of each together."""
    start = clock()
    for group in groups:
        while going := [row for row in group if not row.ended]:
            adapter.loop.step(going)
    return clock() - start


def alike(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Tokens of answers up to where they differ: one rounding difference is enough to change all that follows."""
    pairs = [list(zip(one, other, strict=True)) for one, other in zip(some, others, strict=True)]
    return sum(next((at for at, (a, b) in enumerate(row) if a != b), len(row)) for row in pairs)


def one_round(adapter: ModelAdapter, tokens: int, answers: int, new: int, clock: Callable[[], float]) -> Seen:
    """Seconds of every variant (cache, order). Raises `SamKVError` if an answer depends on those beside it."""
    seen: Seen = {}
    for cache, (kept, packed) in CACHES.items():
        said = []
        for order in ORDERS[: 1 if answers == 1 else 2]:
            made = [begin(adapter, tokens, kept, new, seed, packed) for seed in range(answers)]
            groups = [made] if order == "together" else [[row] for row in made]
            seen[cache, order] = [finish(adapter, groups, clock)]
            said.append([row.result() for row in made])
        if said[0] != said[-1]:
            raise SamKVError("Answers decoded together differ from those decoded alone: no times are reported.")
    return seen


def table(
    tokens: int, answers: int, new: int, clock: str, seen: Seen, device: str = "cpu", label: str = "random"
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per variant: time per token of all answers, throughput, and the gain over whole caches, decoded one
    answer after another where that was measured."""
    together, alone = (("full cache", order) for order in ORDERS)
    slowest = spread(seen.get(alone, seen[together]))["median_ms"]
    out = []
    for (cache, order), seconds in seen.items():
        timing = spread([value / (answers * new) for value in seconds])
        out.append(
            {"model": label, "tokens": tokens, "cache": cache, "answers": answers, "order": order}
            | {name.replace("_ms", "_ms_per_token"): value for name, value in timing.items()}
            | {"tokens_per_second": 1e3 / timing["median_ms"], "faster": slowest / spread(seconds)["median_ms"]}
            | {"new_tokens": new, "clock": clock, "rounds": len(seconds)}
            | where(device)
        )
    return out


def main() -> None:
    parser = options_of(__doc__, rounds=3, devices=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--new", type=int, default=8, help="tokens decoded for each answer")
    parser.add_argument("--answers", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--model", default="random", choices=["random", "random-latent"])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    adapter, clock = gated(options.model, model_named(options.model, options.device)), CLOCKS[options.clock]
    one_round(adapter, options.tokens, 1, 1, clock)
    seen: dict[int, Seen] = {answers: defaultdict(list) for answers in options.answers}
    for _ in range(options.rounds):
        for answers, times in seen.items():
            for variant, seconds in one_round(adapter, options.tokens, answers, options.new, clock).items():
                times[variant] += seconds
    for answers, times in seen.items():
        found = table(options.tokens, answers, options.new, options.clock, times, options.device, options.model)
        publish("decode", found, 10, options.dry)


if __name__ == "__main__":
    main()
