"""What went through the model: the record from which the cost of an answer is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass over a cache of tokens at `positions` `(T,)`, sorted; those at `slots` `(Q,)` ran.

    The first `layers` layers ran; the last of them only up to its queries, keys and values if the pass `ended` there.
    """

    positions: Tensor
    slots: Tensor
    layers: int
    ended: bool = False

    @classmethod
    def whole(cls, tokens: int, layers: int) -> Pass:
        """An ordinary prefill of `tokens` tokens."""
        return cls(torch.arange(tokens), torch.arange(tokens), layers)

    def pairs(self, window: int | None) -> int:
        """How many (row, token it sees) pairs one layer has; a sliding `window` ends a row's view."""
        seen = self.slots.long() + 1
        if window is not None:
            hidden = torch.searchsorted(self.positions, self.positions[self.slots] - window, right=True)
            seen = seen - hidden
        return int(seen.sum())
