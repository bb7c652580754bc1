"""How scores become weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Softmax:
    """Weights of `softcap * tanh(q . k * scale / softcap)`: `scale` is `1 / sqrt(D)` by default, `softcap` None leaves
    scores uncapped.

    `sinks` `(H,)` are logits, one for each query head, that take part in its softmax and stand for no value, so that a
    head may attend to nothing: its weights sum to less than 1 (GPT-OSS; Xiao et al., "attention sinks", learned).
    """

    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a softmax of scaled scores and nothing else."""
        return self.softcap is None and self.sinks is None

    def scale_for(self, dim: int) -> float:
        """The scale for heads of `dim` elements."""
        return float(dim**-0.5) if self.scale is None else self.scale

    def of_heads(self, part: slice) -> Softmax:
        """The same for some of the query heads."""
        return self if self.sinks is None else Softmax(self.scale, self.softcap, self.sinks[part])

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the last axis of capped `scores` `(..., H, Q, T)`, in their dtype."""
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]


PLAIN = Softmax()
