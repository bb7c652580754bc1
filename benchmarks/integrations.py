"""What the integrations add to the time to the first piece of an answer. `python -m benchmarks.integrations`

The same chat messages, with four stored chunks in them, go through `engine.stream`, `SamKVLLM.stream_chat` and
`ChatSamKV.stream`, interleaved in one process, in an order that changes from round to round. Time runs from the call
to the first piece of text, including template, plan and cache reading. The process's own processor seconds are
measured too: where other programs share the core, only they can show a difference of a few milliseconds.
Nothing is reported when the exactness gate is red.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from llama_index.core.llms import ChatMessage

from benchmarks.harness import gated
from benchmarks.prompts import conversation, word_tokenizer
from benchmarks.rows import spread, where, write_rows
from benchmarks.shapes import model_named
from langchain_samkv import ChatSamKV
from llama_index.llms.samkv import SamKVLLM
from samkv_rag import ChunkKVStore, SamKVEngine

GOAL = 0.03


def ways(engine: SamKVEngine, messages: list[dict[str, str]]) -> dict[str, Callable[[], Iterator[Any]]]:
    """The three ways to the same answer."""
    index, chain = SamKVLLM.from_engine(engine, max_new_tokens=2), ChatSamKV(engine=engine, max_tokens=2)
    given = [ChatMessage(role=message["role"], content=message["content"]) for message in messages]
    pairs = [(message["role"], message["content"]) for message in messages]
    return {
        "engine": lambda: iter(engine.stream(messages, max_new_tokens=2)),
        "llama_index": lambda: iter(index.stream_chat(given)),
        "langchain": lambda: chain.stream(pairs),
    }


@dataclass(frozen=True)
class Times:
    """Seconds until the first piece of one answer, on both clocks."""

    wall: float
    processor: float


def to_first_piece(way: Callable[[], Iterator[Any]]) -> Times:
    """The time from the call to the first piece; the rest of the answer is waited for, but not timed."""
    wall, processor = time.perf_counter(), time.process_time()
    pieces = way()
    next(pieces)
    times = Times(time.perf_counter() - wall, time.process_time() - processor)
    for _ in pieces:
        pass
    return times


def measure(engine: SamKVEngine, tokens: int, rounds: int) -> dict[str, list[Times]]:
    """Times way by way, `rounds` rounds after a warm-up round."""
    chunks, messages = conversation(tokens)
    engine.precompute(chunks)
    made = ways(engine, messages)
    order, draw = list(made), random.Random(0)
    seen: dict[str, list[Times]] = defaultdict(list)
    for number in range(rounds + 1):
        draw.shuffle(order)
        for name in order:
            times = to_first_piece(made[name])
            if number:
                seen[name].append(times)
    return seen


def overhead(mine: Sequence[float], bare: Sequence[float]) -> float:
    """The median over rounds of how much longer than the engine a way took in the same round, as a share."""
    return statistics.median(one / other - 1 for one, other in zip(mine, bare, strict=True))


def rows(tokens: int, seen: dict[str, list[Times]]) -> list[dict[str, Any]]:
    """One row per way: milliseconds on both clocks, and the overhead over the engine within the same rounds."""
    packages = {name.replace("-", "_"): version(name) for name in ("llama-index-core", "langchain-core")}
    bare, out = seen["engine"], []
    for name, times in seen.items():
        wall, processor = [t.wall for t in times], [t.processor for t in times]
        row = {"model": "random", "tokens": tokens, "way": name, **spread(wall)}
        row |= {f"cpu_{key}": value for key, value in spread(processor).items()}
        row["overhead"] = overhead(wall, [t.wall for t in bare])
        row["cpu_overhead"] = overhead(processor, [t.processor for t in bare])
        out.append(row | {"rounds": len(times)} | packages | where())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = gated("random", model_named("random")).model
    engine = SamKVEngine.from_pretrained(model, word_tokenizer(), ChunkKVStore(":memory:"))
    for tokens in options.tokens:
        found = rows(tokens, measure(engine, tokens, options.rounds))
        for row in found:
            print(f"{tokens} {row['way']}: {row['median_ms']:.0f} ms ({row['p20_ms']:.0f} to {row['p80_ms']:.0f}), "
                  f"{row['overhead']:+.1%}; processor {row['cpu_median_ms']:.0f} ms ({row['cpu_p20_ms']:.0f} to "
                  f"{row['cpu_p80_ms']:.0f}), {row['cpu_overhead']:+.1%} (goal: below {GOAL:.0%})")  # fmt: skip
        if not options.dry:
            print("written to", write_rows("integrations", found).name)


if __name__ == "__main__":
    main()
