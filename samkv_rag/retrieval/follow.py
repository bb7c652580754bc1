"""The second look: what to search for when a question's answer is one name away.

"In which city is the employer of Hedda Lorne based?" finds the passage on Hedda Lorne, and only that passage says which
employer is meant. On invented worlds of 40 articles (`eval.worlds`), with eight passages in both cases, the second look
finds all that is needed for 40 % of the two-fact questions instead of 20 %; one-fact questions lose less than one
percent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")
_WORD = r"[^\W\d_a-z][\w'-]+"
_NAME = re.compile(rf"\b{_WORD}(?: {_WORD})+|(?<=[\w,;] ){_WORD}")


def follow_ups(question: str, passage: str) -> list[str]:
    """One query for every proper name in `passage` that is not in the question: the question and the name."""
    known = set(re.findall(r"\w+", question))
    names = [name for name in dict.fromkeys(_NAME.findall(passage)) if known.isdisjoint(re.findall(r"\w+", name))]
    return [f"{question} {name} {name}" for name in names]


def merge(first: Iterable[T], others: Sequence[Sequence[T]], size: int) -> list[T]:
    """All of `first`, then the others in turn, best before second best, until there are `size` different ones."""
    chosen = dict.fromkeys(first)
    for row in zip_longest(*others):
        for item in row:
            if item is not None and len(chosen) < size:
                chosen.setdefault(item)
    return list(chosen)
