"""Where the kept tokens of a prompt stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The kept tokens of a prompt in order: position, token id, and the index of the owning chunk (-1: glue)."""

    positions: Tensor
    ids: tuple[int, ...]
    owner: Tensor

    @property
    def glue(self) -> Tensor:
        """Slots of the glue, always computed fresh."""
        return (self.owner < 0).nonzero()[:, 0]

    def columns(self, chunks: int) -> list[Tensor]:
        """For every chunk, where its tokens stand among the chunk tokens of all."""
        owner = self.owner[self.owner >= 0]
        return [(owner == index).nonzero()[:, 0] for index in range(chunks)]


def with_question(layout: Layout, ids: Sequence[int]) -> Layout:
    """The layout with question tokens behind it that do not stand in the prompt."""
    start = int(layout.positions[-1]) + 1
    positions = torch.cat([layout.positions, torch.arange(start, start + len(ids))])
    owner = torch.cat([layout.owner, torch.full((len(ids),), -1)])
    return Layout(positions, (*layout.ids, *ids), owner)
