"""Time to the first token, and to the next: full prefill, plain reuse and SamKV, interleaved in one process.
`python -m benchmarks.ttft`

Runs on the bundled reader and on a random 12 x 768 Llama, in float32 and in bfloat16, at 1k and 4k tokens. It refuses
to report a speed-up when the exactness gate is red. The number that counts is the ratio within one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.harness import gated, in_turns, options_of, publish
from benchmarks.rows import spread, where
from benchmarks.shapes import FRONT, model_named, random_prompt
from benchmarks.systems import METHODS, first_token
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Report

Seen = dict[str, list[Report | float]]


def stock(adapter: ModelAdapter, plan: PromptPlan) -> float:
    """Seconds of an untouched SDPA `generate()`: `full` must not be slower than this, or ratios would flatter us.
    What is compiled for our passes is not used."""
    adapter.model.set_attn_implementation("sdpa")
    tokens = torch.tensor([plan.token_ids], device=adapter.device)
    start = time.perf_counter()
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        kwargs = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 1, "do_sample": False}
        adapter.model.generate(tokens, **kwargs).tolist()
    seconds = time.perf_counter() - start
    adapter.model.set_attn_implementation("samkv")
    return seconds


def measure(
    adapter: ModelAdapter, chunks: int, chunk_tokens: int, rounds: int, systems: Sequence[str] = tuple(METHODS),
    front: int = FRONT,
) -> Seen:  # fmt: skip
    """Reports of every system (and stock seconds), from `rounds` interleaved rounds after a warm-up round."""
    store = ChunkKVStore(":memory:")
    plan = random_prompt(adapter, store, chunks, chunk_tokens, front=front)
    ways: dict[str, Callable[[], Report | float]] = {"stock": lambda: stock(adapter, plan)}
    for name in systems:
        ways[name] = partial(first_token, adapter, store, plan, METHODS[name])
    return in_turns(ways, rounds)


def rows(label: str, tokens: int, seen: Seen, device: str = "cpu") -> list[dict[str, Any]]:
    """One row per method: times, ratios to full in the same run, kept, recomputed, resident K/V."""
    seconds = {name: [r if isinstance(r, float) else r.ttft_seconds for r in found] for name, found in seen.items()}
    full = spread(seconds["full"])["median_ms"]
    out = []
    for name, found in seen.items():
        timing, reports = spread(seconds[name]), [one for one in found if isinstance(one, Report)]
        row = {"model": label, "tokens": tokens, "method": name, **timing, "full_over": full / timing["median_ms"]}
        row |= _shares(reports) if reports else dict.fromkeys(_SHARES, "")
        out.append(row | {"rounds": len(found)} | where(device))
    return out


_SHARES: dict[str, Callable[[Report], float]] = {
    "kept": lambda r: r.kept_ratio,
    "recomputed_of_kept": lambda r: r.recompute_ratio,
    "kv_resident": lambda r: r.kv_bytes_resident / r.kv_bytes_full,
    "load_ms": lambda r: r.stage_seconds["load"] * 1e3,
    "select_ms": lambda r: r.stage_seconds["select"] * 1e3,
    "recompute_ms": lambda r: r.stage_seconds["recompute"] * 1e3,
    "first_token_ms": lambda r: r.stage_seconds["first_token"] * 1e3,
    "second_token_ms": lambda r: r.stage_seconds["second_token"] * 1e3,
}


def _shares(reports: Sequence[Report]) -> dict[str, float]:
    return {name: median(map(share, reports)) for name, share in _SHARES.items()}


def main() -> None:
    parser = options_of(__doc__, rounds=5, devices=True)
    labels = ["bundled", "random", "random-bf16", "random-head", "random-int8", "random-latent", "8b"]
    parser.add_argument("--models", nargs="+", default=labels[:3], choices=labels)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--systems", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--front", type=int, default=FRONT, help="tokens in front of the chunks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    systems = [name for name in METHODS if name == "full" or name in options.systems]
    for label in options.models:
        adapter = gated(label, model_named(label, options.device))
        for tokens in options.tokens:
            if tokens + 64 > adapter.config.max_position_embeddings:
                print(f"{label} has too few positions for {tokens} tokens, skipped")
                continue
            seen = measure(adapter, 8, tokens // 8, options.rounds, systems, options.front)
            name = label if adapter.sink_prefix or options.front == FRONT else f"{label}, {options.front} in front"
            publish("ttft", rows(name, tokens, seen, options.device), 14, options.dry)


if __name__ == "__main__":
    main()
