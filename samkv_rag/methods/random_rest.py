"""Control: SamKV's recompute and first token, and a random rest. What settling by attention must beat.

SamKV's first token attends to all entries. An answer that this token decides (yes or no, one of two names, "not in the
passages") comes out right whatever is kept: such questions say nothing about what was kept, and this shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from samkv_rag.errors import SamKVError
from samkv_rag.methods.run import Run
from samkv_rag.methods.samkv import SamKV
from samkv_rag.options import Seed


@dataclass(frozen=True)
class RandomRest(SamKV):
    """Keeps `keep` of the chunk tokens, drawn from `seed`. Raises `SamKVError` for `settle="before"`."""

    rest: Literal["drop", "int4"] | None = "drop"
    seed: Seed = 0

    name = "random_rest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.settle == "before":
            raise SamKVError(
                'random_rest draws what is kept after the recompute: for settle="before" there is "random".'
            )

    def _worth(self, run: Run, attention: Tensor, vicinity: float) -> Tensor:
        """The same draw for the same seed: two prompts agree place by place, as far as both reach."""
        drawn = torch.rand(sum(run.lengths), generator=torch.Generator().manual_seed(self.seed))
        return drawn.to(run.adapter.device)
