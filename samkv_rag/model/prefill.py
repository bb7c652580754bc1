"""Chunks prefilled alone, after the sink prefix: their caches, and what selection needs to know about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.blocks import blocked, summarised
from samkv_rag.model.cache import GrowingCache
from samkv_rag.model.observers import Observation
from samkv_rag.model.shape import Stack
from samkv_rag.types import ChunkKV

if TYPE_CHECKING:
    from samkv_rag.model.adapter import ModelAdapter

LOCAL_QUERY_TOKENS = 32


@torch.inference_mode()
def chunk_caches(
    adapter: ModelAdapter, texts: Sequence[str], token_ids: Sequence[Sequence[int]]
) -> list[ChunkKV]:  # fmt: skip
    """The caches of chunks prefilled alone, after the sink prefix, in one right-padded batch (causal attention never
    reaches the padding)."""
    prefix = adapter.sink_prefix
    longest = max(map(len, token_ids))
    positions = torch.arange(len(prefix) + longest, device=adapter.device)
    cache, queries = _prefilled(adapter, token_ids, prefix, positions)
    table = adapter.rotary.table(positions).at(positions[len(prefix) :])
    own = adapter.rotary.table(torch.arange(longest, device=adapter.device))

    def stacked(stack: Stack, row: int, text: str, ids: Sequence[int]) -> ChunkKV:
        """What the chunk in one row of the batch has in the layers of a stack."""

        def of(entries: Sequence[Tensor]) -> Tensor:
            return torch.stack([each[row, :, -longest:] for each in entries])

        keys = table.unrotate(of([cache.layers[layer].keys for layer in stack.layers]), stack.layers)
        values = of([cache.layers[layer].values for layer in stack.layers])
        query = table.unrotate(of([queries[layer] for layer in stack.readers]), stack.readers)
        query = query[:, :, max(0, len(ids) - LOCAL_QUERY_TOKENS) : len(ids)].mean(2)
        if adapter.rotary.latent:
            query = query[..., :0]  # nothing that is cached could be compared with it
        kv = blocked(keys[:, :, : len(ids)].to(adapter.dtype), values[:, :, : len(ids)])
        return ChunkKV(summarised(text, ids, own.rotate(keys, stack.layers), query, adapter.dtype), kv)

    return [
        ChunkKV.of([stacked(stack, row, *chunk) for stack in adapter.shape.stacks])
        for row, chunk in enumerate(zip(texts, token_ids, strict=True))
    ]


def _prefilled(
    adapter: ModelAdapter, token_ids: Sequence[Sequence[int]], prefix: Sequence[int], positions: Tensor
) -> tuple[Any, dict[int, Tensor]]:  # fmt: skip
    """The cache of the prefix and the chunks at `positions`, and every layer's queries `(B, H, Q, D)` of the last pass.

    For several chunks the prefix is run once for all of them; where angles depend on the length of a text, and for a
    single chunk, it is run with the chunk.
    """
    cache: Any = GrowingCache()
    queries: dict[int, Tensor] = {}
    apart = len(prefix) if len(token_ids) > 1 and not adapter.rotary.depends_on_length else 0

    def note(seen: Observation) -> None:
        queries[seen.layer] = seen.query

    def read(rows: Sequence[Sequence[int]], start: int, stop: int) -> None:
        # After a prefix it is no plain causal pass: with a mask SDPA gives up its fast path on a GPU.
        backend = adapter.backend if start else "torch"
        plan = AttentionPlan(positions[:stop], None, note, adapter.shape.layers - 1, backend)
        adapter.forward(_padded(rows, stop - start), positions[start:stop], cache, plan)

    if apart:
        read([prefix], 0, apart)
        for layer in cache.layers:
            layer.keys, layer.values = (each.expand(len(token_ids), -1, -1, -1) for each in (layer.keys, layer.values))
    read([[*prefix[apart:], *ids] for ids in token_ids], apart, len(positions))
    return cache, queries


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Token ids `(B, width)`, with zeros after those of each row."""
    out = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        out[row, : len(ids)] = torch.tensor(ids)
    return out
