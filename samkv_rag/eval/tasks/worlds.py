"""The four tasks of `samkv_rag.eval.worlds`, with chunks of any length."""

from __future__ import annotations

import random
from collections.abc import Iterator

from samkv_rag.eval.tasks.filling import ChunkSize, filled, prose
from samkv_rag.eval.tasks.task import Drawn, Generator
from samkv_rag.eval.worlds import examples

WORLD: dict[str, dict[str, bool]] = dict.fromkeys(("one_hop", "earlier_chunk"), {"alike": True, "named": False})
"""The worlds that a task is asked about. Where all things are of one kind, a reader that knows what is asked but not of
whom is right in 12 % of cases at 16 chunks; in mixed worlds in 40 %, and a task that can be guessed measures little."""


def generator(task: str) -> Generator:
    """Questions of `task` as the worlds make them; longer chunks are filled with prose without names, so that "the
    company" still means what an earlier chunk named."""

    def generate(seed: int, chunks: int, size: ChunkSize | None) -> Iterator[Drawn]:
        rng = random.Random(f"prose-{seed}-{chunks}-{task}")
        filler = prose(rng)
        for texts, question, answer, _ in examples(seed, chunks, task, **WORLD.get(task, {})):
            long = texts if size is None else [filled(rng, text, size, filler) for text in texts]
            yield long, question, (answer,)

    return generate
