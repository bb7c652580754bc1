"""What reading for a question takes from a cold disk: `python -m benchmarks.reads`

Every entry's pages are dropped from the page cache (`posix_fadvise`, POSIX_FADV_DONTNEED) before each reading; all ways
of reading are interleaved in one process, and medians are reported. Caches of random numbers in the shape of a 12 x 768
Llama, 8 chunks of 512 tokens by default: for speed, never accuracy. Entries are returned as fp32, the model's dtype.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import spread, where, write_rows
from benchmarks.shapes import CPU_LLAMA
from samkv_rag.store import ChunkKVStore, chunk_key
from samkv_rag.types import BLOCK, ChunkKV, ChunkSummary

KV_DTYPES = ("model", "bf16", "int8", "fp8", "int4")
KEEP = 0.15


def random_chunk(tokens: int, seed: int) -> ChunkKV:
    """A chunk's cache of random numbers, fp32."""
    draws, config = torch.Generator().manual_seed(seed), CPU_LLAMA
    layers, heads = config.num_hidden_layers, config.num_key_value_heads or config.num_attention_heads
    width, blocks = config.hidden_size // config.num_attention_heads, -(-tokens // BLOCK)
    mean, low, high = torch.randn(3, layers, blocks, heads, width, generator=draws)
    query = torch.randn(layers, config.num_attention_heads, width, generator=draws)
    ids = torch.randint(0, config.vocab_size, (tokens,), generator=draws)
    kv = torch.randn(layers, blocks, 2, heads, BLOCK, width, generator=draws)
    return ChunkKV(ChunkSummary("x" * 4 * tokens, ids, mean, low, high, query), kv)


def fill(folder: Path, chunks: int, tokens: int, kv_dtype: str) -> list[str]:
    """Store the chunks; returns their keys."""
    with ChunkKVStore(folder) as store:
        keys = []
        for seed in range(chunks):
            chunk = random_chunk(tokens, seed)
            keys.append(chunk_key(chunk.summary.token_ids.tolist(), "reads", kv_dtype))
            store.put(keys[-1], chunk, kv_dtype=kv_dtype)
        return keys


def forget_pages(folder: Path) -> None:
    """Drop what the page cache holds of every file under `folder` (all of them were synced when written)."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def kept_blocks(tokens: int, seed: int) -> list[int]:
    """15 % of a chunk's blocks, chosen at random, sorted."""
    blocks = -(-tokens // BLOCK)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: round(KEEP * blocks)].tolist())


def everything(store: ChunkKVStore, keys: list[str], tokens: int) -> None:
    """Load all, then select."""
    for key in keys:
        store.read_blocks(key)


def summaries(store: ChunkKVStore, keys: list[str], tokens: int) -> None:
    """What selection by summaries needs if they are not resident, and all that is read with `recompute=1`."""
    for key in keys:
        store.summary(key)


def selected(store: ChunkKVStore, keys: list[str], tokens: int) -> None:
    """Summaries, then the kept blocks of all layers, as when nothing is recomputed."""
    summaries(store, keys, tokens)
    for seed, key in enumerate(keys):
        store.read_blocks(key, kept_blocks(tokens, seed))


def selection_layers(store: ChunkKVStore, keys: list[str], tokens: int) -> None:
    """All blocks of the first two thirds of the layers: a pass over all entries that goes no deeper."""
    for key in keys:
        store.read_blocks(key, None, range(8))


WAYS: dict[str, Callable[[ChunkKVStore, list[str], int], None]] = {
    "all": everything,
    "layers 0-7": selection_layers,
    "summaries": summaries,
    "summaries + kept": selected,
}


def read_once(folder: Path, keys: list[str], tokens: int, way: str) -> tuple[float, int]:
    """Seconds and K/V bytes of one cold reading by a newly opened store."""
    forget_pages(folder)
    with ChunkKVStore(folder) as store:
        start = time.perf_counter()
        WAYS[way](store, keys, tokens)
        return time.perf_counter() - start, store.bytes_read


def measure(root: Path, chunks: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """One row per kv_dtype and way of reading, from `rounds` interleaved rounds after a warm-up round."""
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    nbytes: dict[tuple[str, str], int] = {}
    stores = {name: (root / name, fill(root / name, chunks, tokens, name)) for name in KV_DTYPES}
    for number in range(rounds + 1):
        for (name, (folder, keys)), way in ((item, way) for item in stores.items() for way in WAYS):
            seconds, nbytes[name, way] = read_once(folder, keys, tokens, way)
            if number:
                seen[name, way].append(seconds)
    full = spread(seen["model", "all"])["median_ms"]
    row = partial(_row, chunks=chunks, tokens=tokens, rounds=rounds)
    return [row(*pair, nbytes[pair], spread(seconds), full) for pair, seconds in seen.items()]


def _row(
    kv_dtype: str,
    way: str,
    nbytes: int,
    timing: dict[str, float],
    full: float,
    *,
    chunks: int,
    tokens: int,
    rounds: int,
) -> dict[str, Any]:
    what = {"kv_dtype": kv_dtype, "reads": way, "chunks": chunks, "chunk_tokens": tokens, "kv_mib": nbytes / 2**20}
    cold = {"all_over": full / timing["median_ms"], "page_cache": "dropped per file", "rounds": rounds}
    return what | timing | cold | where()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.chunks, options.chunk_tokens, options.rounds)
    for row in found:
        print(" ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in list(row.values())[:9]))
    if not options.dry:
        print("written to", write_rows("reads", found).name)


if __name__ == "__main__":
    main()
