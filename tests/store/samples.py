"""Small chunks, and children that may be killed."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from samkv_rag.store import ChunkKVStore
from samkv_rag.types import BLOCK, ChunkKV, ChunkSummary

KEYS = [f"{i:02x}" * 20 for i in range(160, 176)]


def make_chunk(
    seed: int = 0,
    n_tokens: int = 40,
    layers: int = 3,
    heads: int = 2,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    text: str | None = None,
) -> ChunkKV:
    """A chunk of random numbers; equal arguments give equal chunks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-n_tokens // BLOCK)

    def numbers(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 40).to(dtype)

    per_block = (layers, blocks, heads, width)
    summary = ChunkSummary(
        text=f"This is the text of chunk {seed}." if text is None else text,
        token_ids=torch.randint(0, 1000, (n_tokens,), generator=generator),
        mean=numbers(*per_block),
        low=numbers(*per_block),
        high=numbers(*per_block),
        local_query=numbers(layers, 2 * heads, width),
    )
    return ChunkKV(summary, numbers(layers, blocks, 2, heads, BLOCK, width))


def same(store: ChunkKVStore, key: str, chunk: ChunkKV) -> bool:
    """Whether the store gives back exactly `chunk`."""
    found, put = store.summary(key), chunk.summary
    tensors = ("token_ids", "mean", "low", "high", "local_query")
    return (
        found.text == put.text
        and all(torch.equal(getattr(found, name), getattr(put, name)) for name in tensors)
        and all(getattr(found, name).dtype == getattr(put, name).dtype for name in tensors)
        and torch.equal(store.read_blocks(key), chunk.kv)
    )


def fork(action: Callable[[], object]) -> int:
    """The id of a child that runs `action`: exit status 0, or 1 with a traceback. It never returns to the test."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The child's exit status, minus the signal's number when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], object]) -> int:
    return wait(fork(action))


def files(folder: Path) -> set[str]:
    """The names of all files under `entries/`."""
    return {path.name for path in (folder / "entries").rglob("*") if path.is_file()}


def names(*keys: str) -> set[str]:
    """The names of the files of whole entries."""
    return {f"{key}.{part}.safetensors" for key in keys for part in ("kv", "summary")}


def file_of(folder: Path, key: str, part: str) -> Path:
    return folder / "entries" / key[:2] / f"{key}.{part}.safetensors"


def flip(path: Path, bit: int) -> None:
    """Flip one bit of the file."""
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)
