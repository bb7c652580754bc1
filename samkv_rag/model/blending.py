"""How recomputed entries are combined with stored ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Blend:
    """How recomputed entries replace stored ones (SamKV, "fusion"): theta * new + (1 - theta) * old.

    `theta` is a weight in (0, 1], or "cosine": per token and head, half the cosine similarity of new and old (clamped
    at 0) weighs the OLD entry, so that what changed most is replaced most (our choice; the paper's formula is not
    published). `fused` `(Q,)` marks the query tokens that are fused; the others (glue, question) are overwritten.
    """

    theta: float | Literal["cosine"]
    fused: Tensor

    def mix(self, new: Tensor, old: Tensor) -> Tensor:
        """`new` and `old` `(1, G, Q, D)` -> what is stored."""
        if self.theta == "cosine":
            like = torch.cosine_similarity(new.float(), old.float(), dim=-1).clamp(min=0)[..., None]
            theta: Tensor | float = (1 - like / 2).to(new.dtype)
        else:
            theta = self.theta
        mixed = theta * new + (1 - theta) * old
        return torch.where(self.fused[None, None, :, None], mixed, new)
