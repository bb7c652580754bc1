"""Time to the first token by where the caches are: memory, a warm disk, a cold one. `python -m benchmarks.tiers`

The store on disk is opened anew for every question; "cold" first drops its pages from the page cache
(`posix_fadvise`, POSIX_FADV_DONTNEED), "warm" leaves them. Full prefill, which reads nothing, is timed as well. All
take turns in one process, on a random 12 x 768 Llama with 8 chunks. Nothing is reported when the exactness gate is red.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import in_turns, opened, options_of, publish
from benchmarks.reads import KV_DTYPES, forget_pages
from benchmarks.rows import spread, where
from benchmarks.shapes import random_prompt
from benchmarks.systems import METHODS, first_token
from samkv_rag.methods import Method, SamKV
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import PromptPlan, Report

SYSTEMS: dict[str, Method] = {
    **{name: METHODS[name] for name in ("reuse", "cacheblend", "samkv", "samkv before")},
    "samkv two_stage": SamKV(settle="before", look="two_stage"),
    "samkv mean": SamKV(settle="before", look="mean"),
    "samkv mean 1/3": SamKV(settle="before", look="mean", recompute=1 / 3),
}
MIB = 2**20


@dataclass(frozen=True)
class Place:
    """Where the caches are, and in what form."""

    tier: str
    kv_dtype: str
    store: ChunkKVStore | Path

    def ask(self, adapter: ModelAdapter, plan: PromptPlan, method: Method) -> Report:
        """Run one question up to its first token, including opening a store on disk."""
        if isinstance(self.store, ChunkKVStore):
            return first_token(adapter, self.store, plan, method)
        if self.tier == "cold":
            forget_pages(self.store)
        with ChunkKVStore(self.store) as store:
            return first_token(adapter, store, plan, method)


def copied(plan: PromptPlan, adapter: ModelAdapter, folder: Path, kv_dtype: str) -> Path:
    """The plan's chunks in a store on disk, stored as `kv_dtype`."""
    with ChunkKVStore(folder) as store:
        for chunk in plan.chunks:
            store.put(str(chunk.key), adapter.ingest([""], [chunk.token_ids])[0], kv_dtype=kv_dtype)
    return folder


def places(
    adapter: ModelAdapter, plan: PromptPlan, memory: ChunkKVStore, root: Path, forms: Sequence[str]
) -> list[Place]:
    """Memory, and every form on disk, warm and cold."""
    folders = {form: copied(plan, adapter, root / form, form) for form in forms}
    disks = [Place(tier, form, folder) for form, folder in folders.items() for tier in ("warm", "cold")]
    return [Place("memory", "model", memory), *disks]


Case = tuple[str, str, str]


def measure(
    adapter: ModelAdapter, chunk_tokens: int, rounds: int, root: Path, systems: Sequence[str], forms: Sequence[str]
) -> dict[Case, list[Report]]:
    """Reports by (tier, kv_dtype, system), in turns."""
    memory = ChunkKVStore(":memory:")
    plan = random_prompt(adapter, memory, 8, chunk_tokens)
    found = places(adapter, plan, memory, root, forms)
    ways: dict[str, Callable[[], Report]] = {
        "none model full": partial(first_token, adapter, memory, plan, METHODS["full"])
    }
    for place in found:
        for name in systems:
            ways[f"{place.tier} {place.kv_dtype} {name}"] = partial(place.ask, adapter, plan, SYSTEMS[name])
    seen = in_turns(ways, rounds)
    return {case_of(name): reports for name, reports in seen.items()}


def case_of(name: str) -> Case:
    """The tier, form and system that make up a name."""
    tier, form, system = name.split(" ", 2)
    return tier, form, system


def rows(label: str, tokens: int, seen: dict[Case, list[Report]], device: str = "cpu") -> list[dict[str, Any]]:
    """One row per place and system: time to the first token, full's over it, what was read and how long that took."""
    full = spread([report.ttft_seconds for report in seen["none", "model", "full"]])["median_ms"]
    out = []
    for (tier, form, system), found in seen.items():
        timing = spread([report.ttft_seconds for report in found])
        row = {"model": label, "tokens": tokens, "tier": tier, "kv_dtype": form, "method": system, **timing}
        row["full_over"] = full / timing["median_ms"]
        row["load_ms"] = spread([report.stage_seconds["load"] for report in found])["median_ms"]
        row["kv_read_mib"] = found[-1].kv_bytes_read / MIB
        out.append(row | {"rounds": len(found)} | where(device))
    return out


def main() -> None:
    parser = options_of(__doc__, rounds=3, devices=True, models=["bundled", "random", "8b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--kv-dtypes", nargs="+", default=["model", "int8", "int4"], choices=KV_DTYPES)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    options = parser.parse_args()
    adapter = opened(options)
    for tokens in options.tokens:
        with tempfile.TemporaryDirectory(dir=options.folder) as root:
            seen = measure(adapter, tokens // 8, options.rounds, Path(root), options.systems, options.kv_dtypes)
        publish("tiers", rows(options.model, tokens, seen, options.device), 11, options.dry)


if __name__ == "__main__":
    main()
