"""Where the kept tokens of a prompt are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from samkv_kernels.repeating import repeated
from samkv_kernels.sending import sent
from samkv_rag.methods.picked import Picked, places
from samkv_rag.types import PromptPlan

GLUE, HEAD = -1, -2
"""The owners of tokens that belong to no chunk. The head is what a prompt begins with, where that is known."""


@dataclass(frozen=True)
class Layout:
    """The kept tokens of a prompt in order: position, token id, and the index of the owning chunk, `GLUE` or `HEAD`."""

    positions: Tensor
    ids: Tensor
    owner: Tensor

    @cached_property
    def glue(self) -> Tensor:
        """Slots of the glue, always computed fresh."""
        return (self.owner == GLUE).nonzero()[:, 0]

    @cached_property
    def owned(self) -> Tensor:
        """Slots of chunk tokens."""
        return (self.owner >= 0).nonzero()[:, 0]

    def counts(self, chunks: int) -> list[int]:
        """How many tokens each chunk has here."""
        counts: list[int] = torch.bincount(self.owned_by, minlength=chunks).tolist()
        return counts

    def runs(self, chunks: int) -> list[tuple[int, int]]:
        """Every chunk's first slot, and how many there are: a chunk's tokens are in neighbouring slots."""
        firsts = torch.searchsorted(self.owned_by, torch.arange(chunks))
        at = self.owned[firsts.clamp(max=max(0, len(self.owned) - 1))] if len(self.owned) else firsts
        return list(zip(at.tolist(), self.counts(chunks), strict=True))

    @cached_property
    def owned_by(self) -> Tensor:
        """The chunk that each chunk token belongs to."""
        return self.owner[self.owned]

    def columns(self, chunks: int) -> list[Tensor]:
        """For every chunk, the places of its tokens among the chunk tokens of all chunks."""
        return list(torch.arange(len(self.owned)).split(self.counts(chunks)))


def beginning(plan: PromptPlan) -> tuple[int, ...]:
    """The tokens at the plan's beginning that other plans may share: up to its first chunk, stored or missed, or to the
    question, which must be run. None, where it has no stored chunk."""
    stops = [segment.start for segment in plan.segments if segment.text in plan.misses]
    stops += [plan.question.start] if plan.question.in_prompt else []
    return plan.before_chunks[: min(stops, default=None)] if plan.chunks else ()


class Ground:
    """All tokens of a prompt, of which layouts take some: made once, so that a layout costs no loop over chunks.

    `here` are their ids `(n,)`, `spots` the places of chunk tokens `(T,)`, all on the `device` that the model runs on.
    The entries of the first `head` of them are known beforehand; these are kept, and not computed. `short`: so few
    chunk tokens that all are computed whatever a method asks for.
    """

    def __init__(self, plan: PromptPlan, device: torch.device, head: int = 0) -> None:
        starts, owners, sizes, ids = list[int](), list[int](), list[int](), array("q")
        for segment in plan.segments:
            chunk = segment.kind == "chunk"
            owners.append(len(starts) if chunk else GLUE)
            starts += [segment.start] if chunk else []
            sizes.append(len(segment.token_ids))
            ids.extend(segment.token_ids)  # torch takes ten times as long over a list
        self.ids = torch.frombuffer(ids, dtype=torch.long) if ids else torch.empty(0, dtype=torch.long)
        self.owner = repeated(*(torch.tensor(each, dtype=torch.long) for each in (owners, sizes)))
        self.owner[:head] = HEAD
        self.starts = torch.tensor(starts, dtype=torch.long)
        self.device, self.head, self.short = device, head, False

    @cached_property
    def here(self) -> Tensor:
        """The ids, on the model's device."""
        return sent(self.ids, self.device)

    @cached_property
    def spots(self) -> Tensor:
        """The places of chunk tokens, on the model's device."""
        return sent(self._owned, self.device)

    @cached_property
    def _owned(self) -> Tensor:
        return (self.owner >= 0).nonzero()[:, 0]

    @cached_property
    def chunked(self) -> Tensor:
        """Bool `(n,)`: which tokens belong to a chunk, on the model's device."""
        return sent(self.owner >= 0, self.device)

    def marked(self, tokens: Sequence[Tensor]) -> Tensor:
        """Bool over all tokens of the prompt: the `tokens` of every chunk."""
        sizes = torch.tensor([len(few) for few in tokens], dtype=torch.long)
        marks = torch.zeros(len(self.owner), dtype=torch.bool)
        if len(sizes):
            marks[torch.cat(list(tokens)) + repeated(self.starts, sizes)] = True
        return marks

    def picked(self, tokens: Sequence[Tensor]) -> Picked:
        """The `tokens` of every chunk, picked on the host."""
        return Picked(self.marked(tokens)[self._owned], sum(map(len, tokens)))

    def found(self, picked: Picked) -> Tensor:
        """Bool over all tokens of the prompt: what was picked, on the host, which waits for it."""
        return torch.zeros(len(self.owner), dtype=torch.bool).index_copy_(0, self._owned, picked.marks.cpu())

    def with_glue(self, picked: Picked) -> Tensor:
        """Sorted places `(Q,)` of the glue and of what was picked, on the model's device; the host does not wait."""
        return self.staying(picked)[self.head :]

    def uncomputed(self, recomputed: int) -> int:
        """How many tokens of the head are not computed when `recomputed` chunk tokens are: when a method asks for all
        of those, every token is computed, as in any prefill; not where the prompt is just too `short` for less."""
        return self.head if self.short or recomputed < len(self._owned) else 0

    def known(self, also: Picked | None) -> Tensor:
        """The places of the head, and of the tokens `also`, which are not computed either, on the model's device."""
        head = torch.arange(self.head, device=self.device)
        return head if also is None else torch.cat([head, self.spots[also.at]])

    def staying(self, picked: Picked) -> Tensor:
        """The same as `with_glue`, with the head before it."""
        marks = (~self.chunked).index_copy_(0, self.spots, picked.on(self.device).marks)
        return places(marks, len(self.owner) - len(self._owned) + picked.count)

    def layout(self, kept: Sequence[Tensor], stop: int | None = None) -> Layout:
        """Glue and the `kept` tokens of every chunk, in prompt order, up to position `stop`."""
        there = self.marked(kept) | (self.owner < 0)
        positions = there[:stop].nonzero()[:, 0]
        return Layout(positions, self.ids[positions], self.owner[positions])


def with_question(layout: Layout, ids: Sequence[int]) -> Layout:
    """The layout followed by question tokens that are not in the prompt."""
    start = int(layout.positions[-1]) + 1
    positions = torch.cat([layout.positions, torch.arange(start, start + len(ids))])
    owner = torch.cat([layout.owner, torch.full((len(ids),), -1)])
    return Layout(positions, torch.cat([layout.ids, torch.tensor(ids, dtype=torch.long)]), owner)
