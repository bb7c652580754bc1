"""Answers replaced by others: people's questions are few, and must be read in the passage anew each time.

A year, a number or a name that answers a question is replaced by another of its kind throughout the passage and the
questions about it, so that a reader that knows the questions by heart is wrong ("corpus substitution" of Longpre et
al. 2021, arXiv 2109.05052, who use it to measure knowledge from outside the passage).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from training.real import Item

_YEAR = re.compile(r"1[0-9]{3}|20[0-2][0-9]")
_NUMBER = re.compile(r"[0-9]+(?:[,.][0-9]+)*")
_NAME = re.compile(r"[A-Z][\w'’.-]*(?: (?:of|the|de|von|van|and|[A-Z][\w'’.-]*)){0,4}")
_ASKING = ("who", "where", "what", "which", "when", "whom", "whose")


@dataclass(frozen=True)
class Names:
    """The names that answer questions, by question word; they replace one another."""

    items: Sequence[Item]

    @cached_property
    def pools(self) -> dict[str, list[str]]:
        """Names in order, by question word."""
        found = dict[str, dict[str, None]]()
        for item in self.items:
            if _NAME.fullmatch(item.answer):
                found.setdefault(asking(item.text), {})[item.answer] = None
        return {word: list(names) for word, names in found.items()}

    def other(self, rng: random.Random, item: Item) -> str | None:
        """Another answer of the same kind; None if the kind is not known."""
        if _YEAR.fullmatch(item.answer):
            return str(rng.randint(1500, 2023))
        if _NUMBER.fullmatch(item.answer):
            return re.sub("[0-9]", lambda digit: str(rng.randint(1, 9)), item.answer)
        if _NAME.fullmatch(item.answer):
            return rng.choice(self.pools[asking(item.text)])
        return None


def asking(question: str) -> str:
    """The question word in a question, or nothing."""
    return next((word for word in question.lower().split() if word in _ASKING), "")


def swapped(rng: random.Random, names: Names, text: str, items: Sequence[Item]) -> tuple[str, list[Item]]:
    """The passage `text` with the answer to one of its questions replaced by another, and the questions that it still
    answers; both unchanged if that answer has no kind, or if the other one is already in the passage."""
    item = rng.choice(items)
    other = names.other(rng, item)
    if other is None or _whole(other).search(text):
        return text, list(items)
    here = _whole(item.answer)
    changed = here.sub(lambda _: other, text)
    left = [
        Item(here.sub(lambda _: other, one.text), here.sub(lambda _: other, one.answer), (changed,)) for one in items
    ]
    return changed, [one for one in left if _whole(one.answer).search(changed)]


def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")
