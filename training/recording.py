"""Gradients without the launches: forward and backward of all batches of one shape are one CUDA graph.

A small reader's kernels take less time than Python takes to launch them. So batches are made level, with as many
targets and points as others of their stage, and what is done with the first one is recorded and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from training.data import ROOM, Batch, Points
from training.train import Losses

TARGETS = 16_384  # the number of targets is a multiple of this
SPOTS = 8_192  # and the number of places that the points of a kind attend to, of this
NOBODY = -2  # the group of targets that count for nothing

Gradients = Callable[[Batch, Tensor], tuple[Losses, Sequence[Tensor]]]
"""From a batch and the weight of plain text: its losses, and a gradient for every weight."""
Record = Callable[[Callable[[], tuple[Tensor, ...]]], Callable[[], object]]
"""Turns a function that computes something into one that repeats it."""


def level(batch: Batch) -> Batch:
    """The batch with targets and points padded to the next multiple; what is added counts for nothing."""
    missing = -len(batch.where) % TARGETS
    points = {kind: _level(found) for kind, found in batch.points.items()}
    return replace(
        batch,
        where=pad(batch.where, (0, missing)),
        targets=pad(batch.targets, (0, missing)),
        group=pad(batch.group, (0, missing), value=NOBODY),
        points=points,
        pointed=dict.fromkeys(points, True),  # a kind that a batch has no points of is computed all the same
    )


def _level(points: Points) -> Points:
    room = (0, ROOM + 1 - points.at.shape[1])
    count = points.spots.shape[1]
    added = torch.tensor([0, ROOM, 0])[:, None].expand(3, max(1, -(-count // SPOTS)) * SPOTS - count)
    return Points(pad(points.at, room), pad(points.meant, room), torch.cat([points.spots, added], 1), points.length)


@dataclass(frozen=True)
class Recording:
    """What was recorded: how it is played, the batch that it reads, and the losses that it writes."""

    play: Callable[[], object]
    batch: Batch
    found: Losses


class Recorder:
    """Computes `gradients` by what `record` makes of it (`Graphs` of the model floor): the losses are returned, the
    gradients are in `grads` until the next call."""

    def __init__(self, weights: Sequence[Tensor], gradients: Gradients, record: Record) -> None:
        self.gradients, self.record = gradients, record
        self.grads = [torch.zeros_like(weight) for weight in weights]
        self.plain_weight = torch.zeros((), device=weights[0].device)
        self.recordings = dict[tuple[object, ...], Recording]()

    def __call__(self, batch: Batch, plain_weight: float) -> Losses:
        """The losses of a level batch."""
        key = (batch.split, *batch.points, *(part.shape for part in _tensors(batch)))
        if key not in self.recordings:
            self.recordings[key] = self._recorded(batch)
        recording = self.recordings[key]
        self.plain_weight.fill_(plain_weight)
        torch._foreach_copy_(list(_tensors(recording.batch)), list(_tensors(batch)))
        recording.play()
        return recording.found

    def _recorded(self, batch: Batch) -> Recording:
        found = list[Losses]()

        def run() -> tuple[Tensor, ...]:
            losses, grads = self.gradients(batch, self.plain_weight)
            torch._foreach_copy_(self.grads, list(grads))
            found.append(losses.detached())
            return found[-1].first, found[-1].rest, found[-1].plain

        play = self.record(run)
        return Recording(play, batch, found[-1])  # the last run is the one that was recorded


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for parts in (batch, *batch.points.values()):
        yield from (part for part in vars(parts).values() if isinstance(part, Tensor))
