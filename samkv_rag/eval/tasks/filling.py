"""Chunks made longer: whole sentences around the chunk's own text, which is kept in one piece."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from samkv_rag.eval import phrases
from samkv_rag.eval.worlds import draft

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_NAME = re.compile(r"\b[A-Z]\w+")


@dataclass(frozen=True)
class ChunkSize:
    """Chunks of at most about `tokens` tokens, as `count` counts the tokens of a text."""

    tokens: int
    count: Callable[[str], int]


def filled(rng: random.Random, chunk: str, size: ChunkSize, sentences: Iterator[str]) -> str:
    """`chunk` with `sentences` before and after it, up to `size`; a chunk that is already longer is unchanged."""
    around: tuple[list[str], list[str]] = ([], [])
    share, left = rng.random(), size.tokens - size.count(chunk)
    while left > 0:
        sentence = next(sentences)
        left -= size.count(" " + sentence)
        if left >= 0:
            around[rng.random() < share].append(sentence)
    return " ".join([*around[0], chunk, *around[1]])


def prose(rng: random.Random) -> Iterator[str]:
    """Endless sentences without names: "the company" still means the one named last."""
    while True:
        yield phrases.prose(rng)


def named_sentences(rng: random.Random, avoid: str, held_out: bool = True) -> Iterator[str]:
    """Endless sentences of other documents, each naming its subject, none with a name that occurs in `avoid`."""
    taken = set(names(avoid))
    while True:
        made = draft(rng.randrange(2**40), held_out, size=12, alike=True)
        found = [s for doc in made.documents for chunk in doc.chunks for s in _SENTENCE_END.split(chunk)]
        rng.shuffle(found)
        yield from (sentence for sentence in found if taken.isdisjoint(_NAME.findall(sentence)))


def names(text: str) -> list[str]:
    """Capitalised words that do not begin the text."""
    return [found.group() for found in _NAME.finditer(text) if found.start()]
