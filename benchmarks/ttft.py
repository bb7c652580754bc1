"""Time to the first token: full prefill, plain reuse and SamKV, interleaved in one process. `python -m benchmarks.ttft`

Run on the bundled reader and on a random 12 x 768 Llama at 1k and 4k tokens. It refuses to report a speed-up when the
exactness gate is red. The number that counts is the ratio within one run.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rows import spread, where, write_rows
from benchmarks.shapes import random_model, random_prompt
from samkv_rag.accounting import make_report
from samkv_rag.methods import CacheBlend, Full, Method, Reuse, Run, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.loading import ModelSource
from samkv_rag.parity import check_parity
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Report

METHODS: dict[str, Method] = {
    "full": Full(),
    "reuse": Reuse(),
    "samkv": SamKV(),
    "samkv 1/3": SamKV(recompute=1 / 3),
    "samkv 1/10": SamKV(recompute=1 / 10),
    "samkv joint": SamKV(look="joint"),
    "samkv joint 1/3": SamKV(look="joint", recompute=1 / 3),
    "cacheblend": CacheBlend(),
}


def first_token(adapter: ModelAdapter, store: ChunkKVStore, plan: PromptPlan, method: Method) -> Report:
    """Prepare and generate one token; the report's `ttft_seconds` is the whole of it."""
    start = time.perf_counter()
    run = Run(plan, adapter, store, room=1)
    prepared = method.prepare(run)
    with run.stage("first_token"):
        adapter.generate(prepared.ids, prepared.cache, max_new_tokens=1, do_sample=False)
    return make_report(run, prepared, method.name, time.perf_counter() - start)


def stock(adapter: ModelAdapter, plan: PromptPlan) -> float:
    """Seconds of an untouched SDPA `generate()`: `full` must not be slower than this, or ratios would flatter us."""
    adapter.model.set_attn_implementation("sdpa")
    tokens = torch.tensor([plan.token_ids], device=adapter.device)
    start = time.perf_counter()
    with torch.inference_mode():
        adapter.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=1, do_sample=False)
    seconds = time.perf_counter() - start
    adapter.model.set_attn_implementation("samkv")
    return seconds


def measure(adapter: ModelAdapter, chunks: int, chunk_tokens: int, rounds: int) -> dict[str, list[Report | float]]:
    """Reports of every method (and stock seconds), `rounds` interleaved rounds after one that warms up."""
    store = ChunkKVStore(":memory:")
    plan = random_prompt(adapter, store, chunks, chunk_tokens)
    seen: dict[str, list[Report | float]] = defaultdict(list)
    for number in range(rounds + 1):
        results: dict[str, Report | float] = {"stock": stock(adapter, plan)}
        results |= {name: first_token(adapter, store, plan, method) for name, method in METHODS.items()}
        for name, result in results.items() if number else ():
            seen[name].append(result)
    return seen


def rows(label: str, tokens: int, seen: dict[str, list[Report | float]]) -> list[dict[str, Any]]:
    """One row per method: times, ratios to full in the same run, kept, recomputed, resident K/V."""
    seconds = {name: [r if isinstance(r, float) else r.ttft_seconds for r in found] for name, found in seen.items()}
    full = spread(seconds["full"])["median_ms"]
    out = []
    for name, found in seen.items():
        report = found[-1]
        timing = spread(seconds[name])
        row = {"model": label, "tokens": tokens, "method": name, **timing, "full_over": full / timing["median_ms"]}
        row |= _shares(report) if isinstance(report, Report) else dict.fromkeys(_SHARES, "")
        out.append(row | {"rounds": len(found)} | where())
    return out


_SHARES: dict[str, Callable[[Report], float]] = {
    "kept": lambda r: r.kept_ratio,
    "recomputed_of_kept": lambda r: r.recompute_ratio,
    "kv_resident": lambda r: r.kv_bytes_resident / r.kv_bytes_full,
    "load_ms": lambda r: r.stage_seconds["load"] * 1e3,
    "select_ms": lambda r: r.stage_seconds["select"] * 1e3,
    "recompute_ms": lambda r: r.stage_seconds["recompute"] * 1e3,
    "first_token_ms": lambda r: r.stage_seconds["first_token"] * 1e3,
}


def _shares(report: Report) -> dict[str, float]:
    return {name: share(report) for name, share in _SHARES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=["bundled", "random"], choices=["bundled", "random"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for label in options.models:
        adapter = random_model() if label == "random" else ModelSource().adapter
        gate = check_parity(adapter)
        print(f"{label}: exactness gate green (recompute {gate.recompute_error:.0e}, reuse {gate.reuse_error:.0e})")
        for tokens in options.tokens:
            if tokens + 64 > adapter.model.config.max_position_embeddings:
                print(f"{label} has too few positions for {tokens} tokens, skipped")
                continue
            found = rows(label, tokens, measure(adapter, 8, tokens // 8, options.rounds))
            for row in found:
                print(" ".join(f"{key}={row[key]:.3g}" if isinstance(row[key], float) else str(row[key])
                               for key in list(row)[:14]))  # fmt: skip
            if not options.dry:
                print("written to", write_rows("ttft", found).name)


if __name__ == "__main__":
    main()
