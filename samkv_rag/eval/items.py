"""One question of an evaluation, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A question, the chunks it is asked about, and the gold answers, of which any one counts.

    `id` names the question within its `task` for good: the same arguments give the same ids, texts and order.
    """

    id: str
    task: str
    question: str
    answers: tuple[str, ...]
    chunks: tuple[str, ...]
