"""How K and V are laid out in bytes: one block of one layer is contiguous, so a few blocks take a few short reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.store.quantise import KVForm, stored_as
from samkv_rag.types import BLOCK, ChunkKV

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""The K/V dtypes that a store accepts, by their safetensors names."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

HEADER_BYTES = 2048
"""Allowance for the two file headers of an entry, used by estimates only."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape and dtype of one entry's K and V as stored: `(L, B, 2, G, BLOCK, D)`, or records `(L, B, bytes)`."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, kv: Tensor) -> KVLayout:
        return cls(kv.dtype, tuple(kv.shape))

    @property
    def layers(self) -> int:
        return self.shape[0]

    @property
    def blocks(self) -> int:
        return self.shape[1]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one layer."""
        return math.prod(self.shape[2:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.layers * self.blocks * self.block_bytes

    def wanted(self, blocks: Sequence[int] | None, layers: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """(layers, blocks) as lists, all of them for None; IndexError for one that the entry does not have."""
        return _within("Layer", layers, self.layers), _within("Block", blocks, self.blocks)

    def reads(self, blocks: Sequence[int], layers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(offset, length) pairs in bytes that give `blocks` of each of `layers` in order; adjacent ones are merged."""
        offset = length = 0
        for layer in layers:
            for block in blocks:
                start = (layer * self.blocks + block) * self.block_bytes
                if start == offset + length:
                    length += self.block_bytes
                    continue
                if length:
                    yield offset, length
                offset, length = start, self.block_bytes
        if length:
            yield offset, length


def _within(what: str, asked: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if asked is None else [int(index) for index in asked]
    for index in chosen:
        if not 0 <= index < count:
            raise IndexError(f"{what} {index} was asked of an entry with {what.lower()}s 0 to {count - 1}.")
    return chosen


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy (numpy itself has no bfloat16)."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def on_host(shape: Sequence[int], dtype: torch.dtype, pinned: bool) -> Tensor:
    """An uninitialised tensor on the host; `pinned`: in memory that a GPU reads directly, if the system allows it."""
    if pinned:
        with suppress(RuntimeError):
            return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.empty(shape, dtype=dtype)


def own(tensor: Tensor, device: str | torch.device = "cpu") -> Tensor:
    """A contiguous copy on `device` that shares no memory with `tensor`."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return copy.copy_(tensor.detach())


def check_chunk(chunk: ChunkKV) -> None:
    """Raise ValueError unless the chunk's tensors have the shapes that `ChunkKV` promises, and a storable dtype."""
    if len(chunk.others) != len(chunk.summary.others):
        raise ValueError(f"kv has {1 + len(chunk.others)} stacks, the summary {1 + len(chunk.summary.others)}.")
    for stack in chunk.stacks:
        _check_stack(stack, chunk.kv.dtype)


def _check_stack(stack: ChunkKV, dtype: torch.dtype) -> None:
    summary, kv = stack.summary, stack.kv
    if summary.token_ids.ndim != 1 or summary.n_tokens == 0 or summary.token_ids.is_floating_point():
        raise ValueError("A chunk to be stored needs at least one token: token_ids must be a 1-D integer tensor.")
    if kv.ndim != 6 or kv.shape[2] != 2 or kv.shape[4] != BLOCK or kv.shape[1] != summary.n_blocks:
        raise ValueError(
            f"kv must be (L, B, 2, G, {BLOCK}, D) with B = {summary.n_blocks} for {summary.n_tokens} tokens, "
            f"not {tuple(kv.shape)}."
        )
    layers, blocks, _, heads, _, width = kv.shape
    if kv.numel() == 0:
        raise ValueError(f"kv must have layers, heads and a head dimension, not shape {tuple(kv.shape)}.")
    for name, tensor in (("mean", summary.mean), ("low", summary.low), ("high", summary.high)):
        if tuple(tensor.shape) != (layers, blocks, heads, width):
            raise ValueError(f"{name} must be {(layers, blocks, heads, width)}, not {tuple(tensor.shape)}.")
    if summary.local_query.ndim != 3 or summary.local_query.shape[0] < layers:
        raise ValueError(f"local_query must be ({layers} or more, H, D), not {tuple(summary.local_query.shape)}.")
    if kv.dtype != dtype:
        raise ValueError(f"kv must have one dtype in all stacks, not {kv.dtype} beside {dtype}.")
    if kv.dtype not in DTYPE_NAMES:
        raise ValueError(f"The store does not hold {kv.dtype}: convert to one of {', '.join(map(str, DTYPE_NAMES))}.")


def estimate_bytes(
    n_tokens: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    chunks: int = 1,
    heads: int | None = None,
    summary_dtype: torch.dtype | None = None,
    kv_dtype: str = "model",
) -> int:
    """Bytes that `n_tokens` tokens in `chunks` chunks will take in the store, for a line shown before ingestion.

    Counts K and V with every chunk padded to whole blocks, block summaries, local queries (`heads` query heads,
    `kv_heads` if not given), token ids, text (6 bytes per token) and file headers. `dtype` is the model's, and the
    summaries' if `summary_dtype` is not given; `kv_dtype` says how K and V are stored, parameters included. For
    chunks of different lengths half a block of padding each is assumed; a sum over single chunks (`chunks=1`) is
    exact in this respect.
    """
    chunks = min(chunks, n_tokens)
    equal = chunks * math.ceil(n_tokens / (chunks * BLOCK)) if chunks else 0
    blocks = max(equal, math.ceil(n_tokens / BLOCK + chunks / 2)) if chunks > 1 else equal
    per_head = layers * head_dim
    kv = blocks * layers * KVForm(stored_as(kv_dtype, dtype), dtype, kv_heads, head_dim).block_bytes
    summaries = (3 * blocks * kv_heads + chunks * (kv_heads if heads is None else heads)) * per_head
    checksums = 8 * layers * blocks
    return kv + summaries * (summary_dtype or dtype).itemsize + checksums + 14 * n_tokens + chunks * HEADER_BYTES
