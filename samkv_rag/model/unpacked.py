"""Attention over packed tokens by what they stand for: the reference of packed attention, and how several tokens attend
to packed latents at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import masked_attention
from samkv_rag.model.absorbed import Latents
from samkv_rag.model.attention import AttentionPlan


@dataclass
class UnpackedPlan(AttentionPlan):
    """Attends to packed tokens by their unpacked entries, placed before the others; if these are `latents`, by what the
    model makes of them."""

    latents: Latents | None = None

    def attended(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, softmax: Softmax, window: int | None,
        shares: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The attention itself, by the reference where anything is packed."""
        if self.packed is None:
            return super().attended(layer, query, key, value, softmax, window, shares)
        keys, values = (entries[None] for entries in self.packed.of_layer(layer).entries())
        if self.latents is not None:
            keys, values = self.latents.expand(layer, keys.to(key.dtype), values.to(value.dtype))
        mask = self.sight(query.shape[2], key.shape[2], window).whole_mask(keys.shape[2])
        both = torch.cat([keys.float(), key.float()], 2), torch.cat([values.float(), value.float()], 2)
        return masked_attention(query, *both, mask, softmax)
