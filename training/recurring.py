"""Sentences with a gap that the rest of the page fills (recurring spans; Ram et al. 2021, "Splinter")."""

from __future__ import annotations

import random
import re

from training.texts import DAY, MONTH, THING, YEAR, plain, split

_SPAN = re.compile(rf"{DAY}|{MONTH} {YEAR}|{YEAR}|\d{{1,3}}(?:,\d{{3}})+|{THING}")
_COMMON = (
    "The A An In On At It He She They His Her Its Their This These That Those As After Before During While When "
    "For From With By To Of And But However Although Since I U.S. Also Some Many Most Other One Two Born There"
)
_PLAIN = frozenset(_COMMON.split())  # words that may have a capital at the beginning of a sentence
GAP = "___"
LONGEST = 7  # words of a span


def recurring(rng: random.Random, title: str, text: str) -> list[tuple[str, str, str]]:
    """For every span in two sentences: one of these with a gap, the span, and the text without that sentence."""
    sentences = list(split(text))
    places = _places([sentence for _, sentence in sentences])
    found = list[tuple[str, str, str]]()
    for span, where in places.items():
        if len(where) < 2 or span in plain(title):
            continue
        place = rng.choice(where)
        begin, sentence = sentences[place]
        rest = f"{text[:begin]}{text[begin + len(sentence) :].lstrip(' ')}".strip()
        if span in rest and len(sentence.split()) >= 6:
            found.append((_blank(rng, sentence, span), span, rest))
    return found


def _places(sentences: list[str]) -> dict[str, list[int]]:
    """The sentences that each span is in."""
    places: dict[str, list[int]] = {}
    for place, sentence in enumerate(sentences):
        for span in dict.fromkeys(_clean(found[0]) for found in _SPAN.finditer(sentence)):
            if span and len(span.split()) <= LONGEST:
                places.setdefault(span, []).append(place)
    return places


def _clean(span: str) -> str:
    first, _, rest = span.partition(" ")
    if first in _PLAIN:
        return rest if rest[:1].isupper() else ""
    return span if len(span) > 2 else ""


def _blank(rng: random.Random, sentence: str, span: str) -> str:
    """The sentence with a gap for the span, in a few forms."""
    gapped = re.sub(rf"(?<!\w){re.escape(span)}(?!\w)", GAP, sentence)
    return rng.choice(("{}", "{}", "Fill in the blank: {}", "Complete the sentence: {}")).format(gapped)
