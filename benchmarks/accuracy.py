"""Exact match of every method on held-out worlds, same questions, same token ids. `python -m benchmarks.accuracy`

Kept and recomputed shares are reported apart; differences to full prefill are paired, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.rows import where, write_rows
from samkv_rag import ChunkKVStore, SamKVEngine
from samkv_rag.eval.metrics import exact_match, token_f1
from samkv_rag.eval.worlds import TASKS, examples
from samkv_rag.methods import (
    AnchorsOnly,
    CacheBlend,
    Epic,
    Full,
    InfoFlow,
    Method,
    MultiInfLLM,
    NoContext,
    ProphetKV,
    Random,
    Reuse,
    SamKV,
)
from samkv_rag.types import Report

METHODS: dict[str, Method] = {
    "full": Full(),
    "reuse": Reuse(),
    "samkv": SamKV(),
    "samkv keep 0.25": SamKV(keep=0.25),
    "samkv keep 0.5": SamKV(keep=0.5),
    "samkv recompute 1/3": SamKV(recompute=1 / 3),
    "samkv recompute 0": SamKV(recompute=0),
    "samkv paper": SamKV.paper(),
    "cacheblend": CacheBlend(),
    "epic": Epic(),
    "multi_infllm": MultiInfLLM(),
    "prophetkv": ProphetKV(),
    "infoflow": InfoFlow(),
    "random": Random(),
    "anchors_only": AnchorsOnly(),
    "no_context": NoContext(),
}


def evaluate(
    engine: SamKVEngine, task: str, methods: Mapping[str, Method], chunks: int, limit: int, seed: int
) -> dict[str, list[tuple[float, float, Report]]]:
    """(exact match, F1, report) per method for `limit` examples of one task."""
    found: dict[str, list[tuple[float, float, Report]]] = defaultdict(list)
    for texts, question, expected, _ in itertools.islice(examples(seed, chunks, task), limit):
        keys = engine.precompute(texts)
        for name, method in methods.items():
            answer = engine.answer(question, texts, method=method, max_new_tokens=24)
            f1 = token_f1(answer.text, expected)
            found[name].append((float(exact_match(answer.text, expected)), f1, answer.report))
        engine.forget(keys)
    return found


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    picks = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def summarise(task: str, chunks: int, found: Mapping[str, list[tuple[float, float, Report]]]) -> list[dict[str, Any]]:
    """One row per method: exact match and F1 with intervals, the paired difference to full, and what it cost."""
    full = np.array([item[0] for item in found["full"]])
    rows = []
    for name, items in found.items():
        match, f1 = np.array([item[0] for item in items]), np.array([item[1] for item in items])
        low, high = interval(match)
        worse, better = interval(match - full)
        reports = [item[2] for item in items]
        rows.append(
            {
                "task": task, "chunks": chunks, "method": name, "n": len(items),
                "em": match.mean(), "em_low": low, "em_high": high, "f1": f1.mean(),
                "minus_full": (match - full).mean(), "minus_full_low": worse, "minus_full_high": better,
                "kept": np.mean([r.kept_ratio for r in reports]),
                "recomputed_of_chunk": np.mean([r.recomputed_tokens / max(1, r.chunk_tokens) for r in reports]),
                "prompt_tokens": np.mean([r.prompt_tokens for r in reports]),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = SamKVEngine.from_pretrained(options.model, store=ChunkKVStore())
    methods = {"full": METHODS["full"]} | {name: METHODS[name] for name in options.methods}
    for task in options.tasks:
        start = time.perf_counter()
        found = evaluate(engine, task, methods, options.chunks, options.limit, options.seed)
        rows = summarise(task, options.chunks, found)
        for row in rows:
            print(
                f"{task:14} {row['method']:22} EM {row['em']:.3f} [{row['em_low']:.3f}, {row['em_high']:.3f}]  "
                f"minus full {row['minus_full']:+.3f} [{row['minus_full_low']:+.3f}, {row['minus_full_high']:+.3f}]  "
                f"kept {row['kept']:.3f}  recomputed {row['recomputed_of_chunk']:.3f}"
            )
        print(f"{task}: {options.limit} questions in {time.perf_counter() - start:.0f} s")
        if not options.dry:
            write_rows("accuracy", [row | where() for row in rows])


if __name__ == "__main__":
    main()
