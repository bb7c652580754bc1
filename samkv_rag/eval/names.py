"""Names for fictional worlds: real-looking first names and cities, made-up words from syllables.

Every name word belongs to one side of a fixed split, decided by a hash of the word: about one word in ten is
*held out* and appears in evaluation worlds only. `NameMaker(rng, held_out)` draws from one side and never
gives the same word twice, so that no two things in one world are confused by an accident of naming.
"""

from __future__ import annotations

import hashlib
import random

from samkv_rag.eval.phrases import WORDING

_NAMES, _SYLLABLES = WORDING["names"], WORDING["syllables"]
_VOWEL_WEIGHTS = (9, 8, 7, 8, 5, 1, 1, 1, 1, 1, 1)


def is_held_out(word: str) -> bool:
    """True for the one in ten name words that only evaluation worlds may use; depends on the word alone."""
    return hashlib.md5(word.lower().encode(), usedforsecurity=False).digest()[0] < 26


def made_word(rng: random.Random, kind: str) -> str:
    """A capitalised invented word; `kind` ("thing", "city" or "person") decides how it ends."""
    word = (
        rng.choice(_SYLLABLES["onsets"])
        + rng.choices(_SYLLABLES["vowels"], _VOWEL_WEIGHTS)[0]
        + rng.choice(_SYLLABLES["middles"])
    )
    if rng.random() < 0.35:
        word += rng.choices(_SYLLABLES["vowels"], _VOWEL_WEIGHTS)[0] + rng.choice(_SYLLABLES["middles"])
    end = rng.choice(_SYLLABLES[kind])
    if word[-1] == end[0] or len(word) > 1 and end[0] not in "aeiouy" and word[-2] not in "aeiou":
        word += rng.choices(_SYLLABLES["vowels"], _VOWEL_WEIGHTS)[0]
    return (word + end).capitalize()


class NameMaker:
    """Draws fresh names from one side of the split; no word comes twice from one maker."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng, self.held_out, self.used = rng, held_out, set[str]()

    def _fresh(self, words: list[str], kind: str, share: float) -> str:
        for attempt in range(1000):
            listed = self.rng.random() < share and attempt < 20
            word = self.rng.choice(words) if listed else made_word(self.rng, kind)
            if is_held_out(word) == self.held_out and word not in self.used:
                self.used.add(word)
                return word
        raise RuntimeError("no fresh name left")

    def city(self) -> str:
        """A city name, real or made up."""
        return self._fresh(_NAMES["cities"], "city", 0.4)

    def thing(self) -> str:
        """An invented word for a company, product or place."""
        return self._fresh([], "thing", 0.0)

    def surname(self) -> str:
        """A family name, real-looking or made up."""
        return self._fresh(_NAMES["surnames"], "person", 0.3)

    def person(self, female: bool) -> str:
        """A full name, "First Last"."""
        return f"{self._fresh(_NAMES['female' if female else 'male'], 'thing', 0.85)} {self.surname()}"
