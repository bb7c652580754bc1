"""One sentence to be found in long chunks, among sentences that say similar things about other subjects."""

from __future__ import annotations

import random
from collections.abc import Iterator

from samkv_rag.eval.tasks.drafts import shown_worlds
from samkv_rag.eval.tasks.filling import ChunkSize, filled, named_sentences
from samkv_rag.eval.tasks.task import Drawn
from samkv_rag.eval.worlds import questions


def generate(seed: int, chunks: int, size: ChunkSize | None) -> Iterator[Drawn]:
    """Questions for one fact whose chunk names its subject. Only questions that start from the subject: many things may
    share a value, whereas the filling, sentences of other worlds, says nothing about this subject."""
    rng = random.Random(f"needle-{seed}-{chunks}")
    for shown in shown_worlds(rng, chunks, max(8, chunks), alike=True):
        asked = questions(rng, shown.made, frozenset(shown.picked))
        fitting = [q for q in asked if q.task == "one_hop" and q.about]
        if fitting:
            question = rng.choice(fitting)
            other = named_sentences(rng, question.text)
            texts = shown.texts if size is None else [filled(rng, text, size, other) for text in shown.texts]
            yield texts, question.text, (question.answer,)
