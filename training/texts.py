# ruff: noqa: E501 - a line is an expression
"""How names, dates and sentences look in written English: the parts of the rules that ask questions."""

from __future__ import annotations

import re
from collections.abc import Iterator

UPPER = r"[^\W\d_a-zß-öø-ÿ]"  # `re` has no \p{Lu}: a letter that is not a lower-case Latin one
WORD = rf"(?:(?:St|Dr|Jr|Sr|Mt|Ft|Mr|Mrs)\.|{UPPER}\.(?:{UPPER}\.)*|{UPPER}[\w-]*(?:['’](?!s\b)[\w-]+)*)"
PARTICLE = r"(?:(?:de|la|le|las|los|van|von|der|den|del|della|di|da|dos|du|al|bin|el|ibn|y|af|zu|ter|ten) ){0,2}"
PERSON = rf"(?:{WORD}(?: {PARTICLE}{WORD}){{1,4}}(?:,? (?:Jr|Sr)\.)?)"
JOIN = r"(?:(?:of|the|for|de|la|del|du|di|da|von|van|der|and the|&) ){0,2}"
THING = rf"(?:(?:{WORD}|\d+(?=[ ]{UPPER}))(?: {JOIN}{WORD}| \d{{1,4}}\b(?! (?:by|to|in|million))){{0,6}})"
PLACE = rf"(?:{WORD}(?: (?:(?:of|the|de|la|del|du|upon|am|on) ){{0,2}}{WORD}){{0,4}}(?:, (?:the )?{WORD}(?: {WORD}){{0,3}}){{0,3}})"
MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
YEAR = r"(?:1[0-9]|20)\d\d\b(?!-)"
DAY = rf"(?:{MONTH} \d{{1,2}}, {YEAR}|\d{{1,2}} {MONTH} {YEAR})"
DATE = rf"(?:{DAY}|{MONTH} {YEAR}|{YEAR})"
NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)"

_END = re.compile(r"[.!?][\"'”)]*\s+(?=[\"“'(]?[^\W_a-zß-öø-ÿ])|\n+")
_SHORT = re.compile(
    rf"(?:\b(?:St|Dr|Jr|Sr|Mt|Ft|Mr|Mrs|No|vs|Inc|Ltd|Co|Rev|Gen|Col|Lt|Capt|Gov|Sen|Prof|c|ca|approx)|\b{UPPER})\.$"
)


def split(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of `text` with the places where they begin; initials and titles do not end one."""
    begin = 0
    for found in _END.finditer(text):
        sentence = text[begin : found.end()].rstrip()
        if _SHORT.search(sentence) and "\n" not in found.group():
            continue
        if sentence:
            yield begin, sentence
        begin = found.end()
    if text[begin:].strip():
        yield begin, text[begin:].rstrip()


def plain(title: str) -> str:
    """A title without what tells it apart from others of the same name."""
    return title.partition(" (")[0].strip() or title


def normal(title: str) -> str:
    """The form by which pages are looked up."""
    return plain(title).lower()
