"""Tokens picked from those of all chunks of a prompt. They stay on the device where they were picked: their number is
known beforehand, so that the host need not wait for a GPU to know what is computed next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from samkv_kernels.sending import sent
from samkv_rag.types import Ranking, Selection

Chosen = tuple[Tensor, ...]
"""Per chunk the sorted indices of some of its tokens."""


@dataclass(frozen=True)
class Picked:
    """Some of the T tokens of all chunks: `marks` bool `(T,)`, of which exactly `count` are set."""

    marks: Tensor
    count: int

    @cached_property
    def at(self) -> Tensor:
        """Their indices, sorted `(count,)`."""
        return places(self.marks, self.count)

    def but(self, few: Picked) -> Picked:
        """All of these except the `few`."""
        return Picked(self.marks & ~few.marks, self.count - few.count)

    def on(self, device: torch.device) -> Picked:
        """The same tokens, on a device."""
        return self if self.marks.device == device else Picked(sent(self.marks, device), self.count)

    def by_chunk(self, lengths: Sequence[int]) -> Chosen:
        """The same tokens chunk by chunk, of `lengths`, on the host, which waits for them."""
        stops = torch.tensor(lengths, dtype=torch.long).cumsum(0)
        at = self.at.cpu()
        owner = torch.searchsorted(stops, at, right=True)
        inside = at - (stops - torch.tensor(lengths, dtype=torch.long))[owner]
        return tuple(inside.split(torch.bincount(owner, minlength=len(lengths)).tolist()))


@dataclass(frozen=True)
class Settled:
    """What is kept of a prompt after a pass that computed `again`: `kept`, by what every token was `worth` `(T,)`. With
    `exact`, these of them are kept at full precision, the others in fewer bits."""

    kept: Picked
    again: Picked
    worth: Tensor
    notes: tuple[str, ...] = ()
    exact: Picked | None = None

    @property
    def packed(self) -> Picked | None:
        """What is kept in fewer bits."""
        return None if self.exact is None else self.kept.but(self.exact)

    def selection(self, lengths: Sequence[int]) -> Selection:
        """The same chunk by chunk, of `lengths`, as a report gives it; the host waits for it."""
        none = tuple(torch.arange(0) for _ in lengths)
        ranking = Ranking(none, tuple(self.worth.cpu().split(list(lengths))), 1)
        packed = () if self.packed is None else self.packed.by_chunk(lengths)
        return Selection(self.kept.by_chunk(lengths), self.again.by_chunk(lengths), self.notes, ranking, packed)


def most_looked_at(attention: Tensor, answer_weight: float = 1.0) -> Tensor:
    """Attention `(N, Q, T)` -> `(T,)`: the most that any asking token pays a token on any of the layers; what the last
    of them pays, which produces the next token, counts `answer_weight` times.

    What is kept is for the rest of the answer. The token before it attends only to what the answer begins with, in a
    list to the first item: a mean would bury what other tokens of the question attend to (lists: docs/results.md).
    """
    most = attention.amax((0, 1))
    return most if answer_weight == 1.0 else torch.maximum(most, answer_weight * attention[:, -1].amax(0))


def places(marks: Tensor, count: int) -> Tensor:
    """Where the bool `marks` `(T,)` are set, sorted `(count,)`: exactly `count` are."""
    return torch.nonzero_static(marks, size=count)[:, 0]


def largest(values: Tensor, count: int) -> Picked:
    """The `count` largest of `values` `(T,)`; of equals the first. A sort would take ten times as long.

    What is not a number counts as the largest, as in a sort: there are `count` in any case, or all."""
    if not 0 < count < len(values):
        return Picked(values.new_full((len(values),), count > 0, dtype=torch.bool), len(values) if count > 0 else 0)
    values = values.nan_to_num(float("inf"), float("inf"), float("-inf"))
    least = values.kthvalue(len(values) - count + 1).values
    above, level = values > least, values == least
    return Picked(above | (level & (level.cumsum(0) <= count - above.sum())), count)


def best_tokens(values: Sequence[Tensor], budget: int) -> Chosen:
    """Per chunk the sorted tokens that are among the `budget` largest values of all chunks; of equals the first."""
    return largest(torch.cat(list(values)), budget).by_chunk([len(value) for value in values])


def best_of(picked: Picked, values: Tensor, count: int) -> Picked:
    """The `count` best of those picked, by `values` `(T,)`; of equals the first. All of them, if there are no more."""
    if count >= picked.count:
        return picked
    values = values.nan_to_num(float("inf"), float("inf"), torch.finfo(values.dtype).min)
    return largest(values.masked_fill(~picked.marks, float("-inf")), count)


def exchanged(picked: Picked, order: Tensor, before: Tensor, after: Tensor) -> Picked:
    """As many as `picked`, whose last ones by `order` `(T,)` give way to tokens whose value rose from `before` to
    `after` `(T,)` and is among the `picked.count` largest. What is infinite in the order is kept in any case.

    Of tokens picked by value alone, this makes those with the largest values `after`."""
    rose = (after > before) & largest(after, picked.count).marks
    risen = torch.full_like(order, float("-inf")).masked_fill(rose, torch.finfo(order.dtype).max)
    return largest(torch.maximum(order.masked_fill(~picked.marks, float("-inf")), risen), picked.count)
