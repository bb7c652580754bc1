"""Tokens cached per second, against those that the plain model reads. `python -m benchmarks.ingestion`

The same batches of random chunks go through the stock SDPA decoder ("forward"), through the adapter, which rotates keys
back and summarises ("caches"), and through whole ingestion into a store in memory and on disk, in every `kv_dtype`.
All take turns in one process; every store is a new one, made and removed while no clock runs. Nothing is reported
when the exactness gate is red. The number that counts is `of_forward`, the share of the plain model's speed that is
left, within one run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import in_turns, opened, options_of, publish, wait
from benchmarks.reads import KV_DTYPES
from benchmarks.rows import spread, where
from samkv_rag.ingest import BATCH_TOKENS, Pending, ingest
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore, chunk_key

MIB = 2**20


@dataclass(frozen=True)
class Cached:
    """Seconds that one way takes over all chunks, and the bytes of the files that it wrote."""

    seconds: float
    written: int = 0


def random_chunks(adapter: ModelAdapter, chunks: int, chunk_tokens: int) -> list[Pending]:
    """Chunks of random ids, four characters per token."""
    draws, vocab = torch.Generator().manual_seed(0), adapter.config.vocab_size
    ids = [tuple(torch.randint(3, vocab, (chunk_tokens,), generator=draws).tolist()) for _ in range(chunks)]
    return [Pending("x" * 4 * chunk_tokens, chunk_key(own, "ingestion", "ingestion"), own) for own in ids]


def batches(pending: Sequence[Pending]) -> Iterator[Sequence[Pending]]:
    """Chunks of one length, as ingestion batches them."""
    size = max(1, BATCH_TOKENS // len(pending[0].token_ids))
    return (pending[start : start + size] for start in range(0, len(pending), size))


def forward(adapter: ModelAdapter, pending: Sequence[Pending]) -> Cached:
    """Run the stock decoder over every batch and discard its cache."""
    adapter.model.set_attn_implementation("sdpa")
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches(pending):
            adapter.decoder(torch.tensor([chunk.token_ids for chunk in batch], device=adapter.device), use_cache=True)
    wait(adapter.device)
    seconds = time.perf_counter() - start
    adapter.model.set_attn_implementation("samkv")
    return Cached(seconds)


def caches(adapter: ModelAdapter, pending: Sequence[Pending]) -> Cached:
    """Make the caches of every batch and discard them."""
    start = time.perf_counter()
    for batch in batches(pending):
        adapter.ingest([chunk.text for chunk in batch], [chunk.token_ids for chunk in batch])
    return Cached(time.perf_counter() - start)


def stored(adapter: ModelAdapter, pending: Sequence[Pending], kv_dtype: str, root: Path | None) -> Cached:
    """Whole ingestion into a new store: in memory, or in a new folder under `root`."""
    with tempfile.TemporaryDirectory(dir=root) as folder, ChunkKVStore(":memory:" if root is None else folder) as store:
        start = time.perf_counter()
        for _ in ingest(
            pending, adapter, store, namespace="ingestion", fingerprint="ingestion", turn=nullcontext(),
            kv_dtype=kv_dtype,
        ):  # fmt: skip
            pass
        seconds = time.perf_counter() - start
        if len(store) != len(pending):
            raise SystemExit(f"{len(store)} of {len(pending)} chunks were stored: nothing is reported.")
        return Cached(seconds, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))


def ways(adapter: ModelAdapter, pending: Sequence[Pending], root: Path) -> dict[str, Callable[[], Cached]]:
    """All ways over the same chunks, by name."""
    out: dict[str, Callable[[], Cached]] = {
        "forward": partial(forward, adapter, pending),
        "caches": partial(caches, adapter, pending),
        "memory": partial(stored, adapter, pending, "model", None),
    }
    return out | {f"disk {form}": partial(stored, adapter, pending, form, root) for form in KV_DTYPES}


def rows(
    label: str, chunks: int, chunk_tokens: int, seen: dict[str, list[Cached]], device: str = "cpu"
) -> list[dict[str, Any]]:
    """One row per way: time of all chunks, tokens per second, the share of the plain model's speed, MiB written."""
    tokens = chunks * chunk_tokens
    plain = spread([each.seconds for each in seen["forward"]])["median_ms"]
    out = []
    for name, found in seen.items():
        timing = spread([each.seconds for each in found])
        row = {"model": label, "chunks": chunks, "chunk_tokens": chunk_tokens, "way": name, **timing}
        row["tokens_per_second"] = 1e3 * tokens / timing["median_ms"]
        row["of_forward"] = plain / timing["median_ms"]
        row["written_mib"] = found[-1].written / MIB
        out.append(row | {"rounds": len(found)} | where(device))
    return out


def main() -> None:
    parser = options_of(__doc__, rounds=3, devices=True, models=["bundled", "random", "random-head", "8b"])
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; default: the temporary folder")
    options = parser.parse_args()
    adapter = opened(options)
    pending = random_chunks(adapter, options.chunks, options.chunk_tokens)
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        seen = in_turns(ways(adapter, pending, Path(root)), options.rounds)
    found = rows(options.model, options.chunks, options.chunk_tokens, seen, options.device)
    publish("ingestion", found, 10, options.dry)


if __name__ == "__main__":
    main()
