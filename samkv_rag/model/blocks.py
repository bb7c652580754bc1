"""From a chunk's keys and values as computed to the blocks in which they are stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samkv_rag.types import BLOCK, ChunkSummary


def blocked(keys: Tensor, values: Tensor) -> Tensor:
    """`(L, G, T, D)` twice -> `(L, B, 2, G, BLOCK, D)` on the same device, zeros after the last token."""
    layers, heads, tokens, dim = keys.shape
    blocks = -(-tokens // BLOCK)
    out = keys.new_zeros(layers, blocks, 2, heads, BLOCK, dim)
    padded = torch.nn.functional.pad(torch.stack([keys, values]), (0, 0, 0, blocks * BLOCK - tokens))
    return out.copy_(padded.view(2, layers, heads, blocks, BLOCK, dim).permute(1, 3, 0, 2, 4, 5))


def summarised(text: str, ids: Sequence[int], keys: Tensor, local_query: Tensor, dtype: torch.dtype) -> ChunkSummary:
    """Mean, minimum and maximum of `keys` `(L, G, >=T, D)` (in the chunk's own frame) per block, in `dtype`."""
    per_block = [keys[:, :, start : min(start + BLOCK, len(ids))] for start in range(0, len(ids), BLOCK)]
    mean, low, high = (
        torch.stack(parts, 1).to(dtype).cpu()
        for parts in zip(*((x.mean(2), x.amin(2), x.amax(2)) for x in per_block), strict=True)
    )
    return ChunkSummary(text, torch.tensor(ids, dtype=torch.int32), mean, low, high, local_query.to(dtype).cpu())
