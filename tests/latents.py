"""What models cache that cache latents, as they themselves hold it and as we do. Nothing here calls the code that is
being tested."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def held(model: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A stock model's keys and values `(..., D)` as they are held by us: latents behind what turns, in two halves."""
    if not hasattr(model.config, "kv_lora_rank"):
        return keys, values
    first, second = torch.cat([values, keys], -1).chunk(2, -1)
    return first, second


def handed(model: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `held`."""
    if not hasattr(model.config, "kv_lora_rank"):
        return keys, values
    both, turning = torch.cat([keys, values], -1), model.config.qk_rope_head_dim
    return both[..., turning:], both[..., :turning]
