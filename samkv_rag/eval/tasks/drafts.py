"""Worlds and picked chunks, for tasks that ask their own questions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from samkv_rag.eval.entities import Entity
from samkv_rag.eval.worlds import Draft, draft, pick

Place = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """A world of which only the chunks at `picked` (document, chunk), sorted, are shown."""

    made: Draft
    picked: tuple[Place, ...]

    @property
    def texts(self) -> list[str]:
        """The shown chunks in document order."""
        return [self.made.documents[document].chunks[chunk] for document, chunk in self.picked]

    def needs(self, entity: Entity, relation: str) -> frozenset[Place] | None:
        """The chunks that state the fact, subject included, if all of them are shown."""
        needs = self.made.stated.get((id(entity), relation))
        return needs if needs and needs <= set(self.picked) else None

    def hinted(self, entity: Entity, relation: str) -> bool:
        """True if a chunk that belongs to the statement is shown, whether or not all of them are."""
        return bool(self.made.stated.get((id(entity), relation), frozenset()) & set(self.picked))


def shown_worlds(rng: random.Random, chunks: int, size: int, alike: bool = False) -> Iterator[Shown]:
    """Endless held-out worlds of about `size` things, all of one kind if `alike`; exactly `chunks` chunks are shown."""
    while True:
        made = draft(rng.randrange(2**40), held_out=True, size=size, alike=alike)
        picked = tuple(sorted(pick(made, rng, chunks)))
        if len(picked) == chunks:
            yield Shown(made, picked)
