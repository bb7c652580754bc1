"""Compare every Triton kernel with its reference on a GPU, then time both. `python -m benchmarks.kernels`

Shapes are an 8B Llama's (32 layers, 32 query and 8 key heads of 128), 16 chunks of 1,024 tokens of which 15 % are kept.
A kernel that differs from its reference is an error and no row is written. Both are timed in turns by CUDA events,
after warm-up, so that the ratio within one run counts. Needs a CUDA device; without one it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import spread, where, write_rows
from samkv_kernels.backend import Backend, BackendError, choose
from samkv_kernels.block_scores import block_logits, block_scores, bound_logits
from samkv_kernels.packed import Packed
from samkv_kernels.rope_gather import Angles, Stored, rope_gather
from samkv_kernels.rows_attention import Caches, PackedRows, rows_attention
from samkv_kernels.softmax import PLAIN
from samkv_kernels.sparse_attention import Spans, attention_shares, sparse_attention
from samkv_rag.store.quantise import QUANTISERS, KVForm

LAYERS, HEADS, GROUPS, DIM, SIZE = 32, 32, 8, 128, 16
CHUNKS, CHUNK_BLOCKS, ASKED = 16, 64, 32
KEPT = CHUNKS * CHUNK_BLOCKS * SIZE * 15 // 100 // SIZE * SIZE
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """One kernel on one input: `run(backend)` gives tensors to compare, `moved` counts the bytes it has to move."""

    name: str
    run: Callable[[Backend], tuple[Tensor, ...]]
    moved: int


def gathers(device: torch.device) -> Iterator[Case]:
    """Kept blocks from HBM in every form, and from pinned memory unquantised."""
    blocks = KEPT // SIZE
    kv = torch.randn(1, blocks, 2, GROUPS, SIZE, DIM, dtype=torch.bfloat16)  # equal layers, different addresses
    rows = torch.randperm(KEPT, device=device).int()
    theta = torch.randn(1, KEPT, DIM // 2, device=device)
    angles = Angles(theta.cos(), theta.sin())
    written = LAYERS * kv.numel() * 2
    for form in ("bf16", "int8", "fp8", "int4"):
        stored = _all_layers(KVForm.of(kv, form).encode(kv).to(device))
        yield _gather(f"rope_gather {form}", _as_stored(stored, form), rows, angles, stored.nbytes + written)
    pinned = _all_layers(kv).pin_memory()
    yield _gather("rope_gather bf16 pinned", Stored.of(pinned), rows, angles, pinned.nbytes + written)


def _all_layers(one: Tensor) -> Tensor:
    return one.repeat(LAYERS, *[1] * (one.ndim - 1))


def _gather(name: str, stored: Stored, rows: Tensor, angles: Angles, moved: int) -> Case:
    return Case(name, lambda backend: rope_gather(stored, rows, angles, torch.bfloat16, 0, backend), moved)


def _as_stored(held: Tensor, form: str) -> Stored:
    if form not in QUANTISERS:
        return Stored.of(held)
    return QUANTISERS[form].unpack(held, GROUPS, DIM)


def scores(device: torch.device) -> Iterator[Case]:
    """All layers' block summaries of all chunks: one pooled query, and every token of a question."""
    counts = [CHUNK_BLOCKS] * CHUNKS
    mean = torch.randn(LAYERS, sum(counts), GROUPS, DIM, device=device).bfloat16()
    low, high = mean - 1, mean + 1
    query = torch.randn(CHUNKS, LAYERS, HEADS, ASKED, DIM, device=device)
    pooled = query[:, :, :, 0].contiguous()
    yield Case("block_scores", lambda way: (block_scores(pooled, mean, counts, way),), mean.nbytes)
    yield Case("block_logits", lambda way: (block_logits(query, mean, counts, way),), mean.nbytes)
    yield Case("bound_logits", lambda way: (bound_logits(query, low, high, counts, way),), 2 * mean.nbytes)


def attentions(device: torch.device) -> Iterator[Case]:
    """One layer: all, a third and a tenth of the kept tokens as queries, and the question over all keys."""
    at = torch.randperm(CHUNKS * CHUNK_BLOCKS * SIZE, device=device)[:KEPT].sort().values
    key, value = (torch.randn(1, GROUPS, KEPT, DIM, device=device, dtype=torch.bfloat16) for _ in range(2))
    for share in (1, 3, 10):
        rows = torch.arange(0, KEPT, share, device=device)
        yield _attention(f"sparse_attention 1/{share}", key, value, Spans.causal(at[None, rows], at[None]))
    total = CHUNKS * CHUNK_BLOCKS * SIZE
    keys = torch.randn(1, GROUPS, total, DIM, device=device, dtype=torch.bfloat16)
    query = torch.randn(1, HEADS, ASKED, DIM, device=device, dtype=torch.bfloat16)
    everything = torch.arange(total, device=device)[None]
    spans = Spans.causal(everything[:, -1:].expand(1, ASKED), everything)
    values = torch.randn_like(keys)
    yield _attention("sparse_attention question", keys, values, spans)
    yield Case("attention_shares", lambda way: (attention_shares(query, keys, spans, backend=way),), keys.nbytes)


def _attention(name: str, key: Tensor, value: Tensor, spans: Spans) -> Case:
    query = torch.randn(1, HEADS, spans.first.shape[1], DIM, device=key.device, dtype=key.dtype)
    moved = key.nbytes + value.nbytes + 2 * query.nbytes
    return Case(name, lambda way: (sparse_attention(query, key, value, spans, backend=way),), moved)


def steps(device: torch.device) -> Iterator[Case]:
    """One layer of a decoding step over all tokens, unpacked, and in four bits per number with a few unpacked ones."""
    total, few = CHUNKS * CHUNK_BLOCKS * SIZE, 64
    keys, values = torch.randn(2, 1, GROUPS, total + few, DIM, device=device, dtype=torch.bfloat16)
    packed = Packed.of(keys[0, :, :total], values[0, :, :total])
    yield _step("rows_attention", keys, values, None, keys.nbytes + values.nbytes)
    beside = PackedRows.of([packed], _all_of(total, device))
    yield _step("rows_attention int4", keys[:, :, total:], values[:, :, total:], beside, packed.nbytes)


def _step(name: str, keys: Tensor, values: Tensor, packed: PackedRows | None, moved: int) -> Case:
    caches, seen = Caches.of([keys], [values]), _all_of(keys.shape[2], keys.device)
    query = torch.randn(1, HEADS, 1, DIM, device=keys.device, dtype=keys.dtype)
    return Case(name, lambda way: (rows_attention(query, caches, seen, PLAIN, way, packed),), moved)


def _all_of(tokens: int, device: torch.device) -> Spans:
    """The spans of one query that attends to `tokens` tokens."""
    first = torch.zeros(1, 1, dtype=torch.int32, device=device)
    return Spans(first, first + tokens - 1)


def every_case(device: torch.device) -> Iterator[Case]:
    """All kernels on all their inputs, made one after another."""
    torch.manual_seed(0)
    for cases in (gathers, scores, attentions, steps):
        yield from cases(device)


@cache
def versions() -> dict[str, str]:
    """Versions of what compiles and runs kernels."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.split() if shutil.which(query[0]) else []
    return {"cuda": str(torch.version.cuda), "triton": version("triton"), "driver": driver[0] if driver else ""}


def check(case: Case) -> float:
    """The largest difference between kernel and reference over the largest magnitude; SystemExit if it is too large."""
    pairs = list(zip(case.run("triton"), case.run("torch"), strict=True))
    distances = [float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs]
    if not max(distances) <= LIMITS[pairs[0][0].dtype]:
        raise SystemExit(f"{case.name} differs from its reference by {max(distances):.2e}: no row was written.")
    return max(distances)


def timed(case: Case, rounds: int) -> dict[Backend, list[float]]:
    """Seconds of every round, both backends in turns after three rounds of warm-up."""
    ways: tuple[Backend, Backend] = ("triton", "torch")
    seconds: dict[Backend, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 3):
        for way in ways:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            case.run(way)
            end.record()
            torch.cuda.synchronize()
            if number >= 3:
                seconds[way].append(begin.elapsed_time(end) / 1e3)
    return seconds


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Two rows: the kernel and its reference."""
    error, seconds, rows = check(case), timed(case, rounds), []
    for way, each in seconds.items():
        times = spread(each)
        reached = case.moved / times["median_ms"] / 1e6
        what = {"kernel": case.name, "backend": way, "error": f"{error:.2e}", **times, "gb_per_s": reached}
        rows.append(where("cuda") | what | versions())
    print(
        f"{case.name:28s} error {error:.1e}  {rows[0]['median_ms']:8.3f} ms, reference {rows[1]['median_ms']:8.3f} ms"
    )
    return rows


def main() -> int:
    """Check, time and record; returns 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda")
    if not torch.cuda.is_available():
        print("benchmarks.kernels needs a CUDA device: kernels are timed on a GPU or not at all.", file=sys.stderr)
        return 1
    try:
        choose(device, "triton")
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [row for case in every_case(device) for row in measure(case, rounds)]
    print(f"wrote {write_rows('kernels', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
