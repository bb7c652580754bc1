"""What a generated task is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.eval.tasks.filling import ChunkSize

Drawn = tuple[list[str], str, tuple[str, ...]]
"""Chunk texts in order, the question, and the gold answers."""

Generator = Callable[[int, int, ChunkSize | None], Iterator[Drawn]]
"""(seed, number of chunks, size of the chunks or None for the worlds' own) -> endless questions."""


@dataclass(frozen=True)
class Task:
    """`cross` says which part of the answer depends on chunks that see each other; reports show it.

    `answer_tokens` is room for the longest answer; `margin` the loss in points of F1 that the goal allows at keep 15 %;
    `least_chunks` how many chunks a question must have.
    """

    name: str
    cross: str
    generate: Generator
    answer_tokens: int = 16
    margin: float = 1.0
    least_chunks: int = 1

    def check(self, chunks: int) -> None:
        """Raise `SamKVError` if no question can be made over so few chunks."""
        if chunks < self.least_chunks:
            raise SamKVError(f"{self.name} needs at least --chunks {self.least_chunks}, not {chunks}.")

    def items(self, seed: int, chunks: int, size: ChunkSize | None = None) -> Iterator[Item]:
        """Endless questions of exactly `chunks` chunks; the ids say what they were made from."""
        own = f"{self.name}-{seed}-{chunks}-{size.tokens if size else 'own'}"
        for number, (texts, question, answers) in enumerate(self.generate(seed, chunks, size)):
            yield Item(f"{own}-{number}", self.name, question, answers, tuple(texts))
