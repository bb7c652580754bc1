"""Statements turned into questions: every sentence of a text that has one of a few shapes is asked about.

The subject stands in front of the verb; a pronoun or "The film" there is put back as the page's title. Then a date, a
place, an agent, a number, an object or the subject itself is what is asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from training.facts import Fact, is_person, kind
from training.shapes import (
    ACTIVE,
    APPOSITION,
    BRACKETS,
    BY,
    FRONT,
    NUMBER,
    OBJECT,
    PASSIVE,
    PERSONAL,
    PRONOUN,
    STOP,
    SUBJECT,
    THE,
    VERBS,
    WHEN,
    WHERE,
    WHY,
)
from training.texts import plain, split
from training.verbs import BASES

Pair = tuple[str, str]
LONGEST = 26  # words of a question


def convert(rng: random.Random, title: str, text: str, facts: list[Fact]) -> Iterator[Pair]:
    """Questions and answers about the sentences of a text."""
    name, person, what = plain(title), is_person(facts), kind(facts)
    for _, sentence in split(text):
        clean = BRACKETS.sub("", sentence).rstrip(".!?\"' ")
        front = FRONT.match(clean)
        tail = f" {front['prep'].lower()} {front['when']}" if front else ""
        body = front["rest"] if front else clean
        for question, answer in _asked(rng, Clause(name, person, what, body, tail)):
            if len(question.split()) <= LONGEST and _whole(question):
                yield question, answer.strip()
    yield from ((f"Who is the {found['role']}?", found["v"]) for found in APPOSITION.finditer(text))


def _whole(question: str) -> bool:
    return (
        not re.search(r"\b(?:he|she|it|they|his|her|their|this|these|which|whose)\b", question) and "  " not in question
    )


class Clause:
    """One statement: its words, what was in front of it, and who it is about."""

    def __init__(self, name: str, person: bool, what: str, body: str, tail: str) -> None:
        self.name, self.person, self.what, self.body, self.tail = name, person, what, body, tail

    def subject(self, written: str) -> tuple[str, str]:
        """The subject to ask with, and the word to ask for it."""
        found = PRONOUN.match(written)
        if found or written == self.name or self.name.endswith(f" {written}"):
            human = written.lower() in ("he", "she") or (self.person and not (found and found["kind"]))
            which = f"Which {self.what}" if self.what else "What"
            return self.name, "Who" if human else which
        return (written[0].lower() + written[1:] if written.startswith("The ") else written), ""


def _asked(rng: random.Random, clause: Clause) -> Iterator[Pair]:
    if found := THE.match(clause.body):
        yield from _superlative(rng, clause, found)
    elif found := PASSIVE.match(clause.body):
        yield from _passive(rng, clause, found)
    elif found := ACTIVE.match(clause.body):
        yield from _active(rng, clause, found)
    yield from _counted(clause)


def _cut(rest: str) -> str:
    """The words up to where another clause may begin."""
    found = STOP.search(rest)
    return rest[: found.start()] if found else rest


def _without(rest: str, found: re.Match[str]) -> str:
    """The words in front of what is asked for, and those behind it as long as they belong to them."""
    before, behind = rest[: found.start()].rstrip(" ,"), _cut(rest[found.end() :])
    return f" {before}{behind}".rstrip() if before else f" {behind.strip()}".rstrip()


def _superlative(rng: random.Random, clause: Clause, found: re.Match[str]) -> Iterator[Pair]:
    subject, who = clause.subject(found["s"])
    if subject == clause.name or subject == found["s"]:
        ask = who if who in ("Who", "What") else "What"
        yield f"{ask} {found['be']} {found['d']}{clause.tail}?", subject
    if len(found["d"].split()) <= 8:
        yield f"{'Who' if who == 'Who' else 'What'} {found['be']} {subject}{clause.tail}?", found["d"]


def _passive(rng: random.Random, clause: Clause, found: re.Match[str]) -> Iterator[Pair]:
    subject, who = clause.subject(found["s"])
    be, verb, rest = found["be"], found["v"], found["rest"]
    if clause.tail:
        yield (
            f"{rng.choice(('When', 'In what year'))} {be} {subject} {verb} {_cut(rest)}?",
            clause.tail.split(" ", 2)[2],
        )
    for expression, words in ((WHEN, ("When", "In what year", "What year")), (WHERE, ("Where", "In what place"))):
        if (part := expression.search(rest)) and part.start() < 60 and ", " not in rest[: part.start()]:
            yield f"{rng.choice(words)} {be} {subject} {verb}{_without(rest, part)}{clause.tail}?", part["v"]
    if part := BY.search(_cut(rest)):
        yield f"Who {be} {subject} {verb} by{_without(_cut(rest), part)}{clause.tail}?", part["v"]
        yield f"Who {verb} {subject}{_without(_cut(rest), part)}{clause.tail}?", part["v"]
    if why := WHY.search(rest):
        yield f"Why {be} {subject} {verb} {_cut(rest[: why.start()])}?", why["v"]
    if who and len(rest.split()) > 3:
        yield f"{who} {be} {verb} {_cut(rest)}{clause.tail}?", subject


def _active(rng: random.Random, clause: Clause, found: re.Match[str]) -> Iterator[Pair]:
    subject, who = clause.subject(found["s"])
    verb, rest = found["v"], found["rest"]
    base = BASES[verb]
    short = _cut(rest)
    if clause.tail and len(short.split()) > 1:
        yield f"{rng.choice(('When', 'In what year'))} did {subject} {base} {short}?", clause.tail.split(" ", 2)[2]
    for expression, words in ((WHEN, ("When", "In what year", "What year")), (WHERE, ("Where",))):
        if (part := expression.search(short)) and (part.start() or expression is WHEN):
            yield f"{rng.choice(words)} did {subject} {base}{_without(short, part)}{clause.tail}?", part["v"]
    if part := OBJECT.match(rest):
        what = "Who" if verb in ("married", "defeated", "beat", "met", "succeeded", "replaced") else "What"
        yield f"{what} did {subject} {base}{_without(rest, part)}{clause.tail}?", part["v"]
    if why := WHY.search(rest):
        yield f"Why did {subject} {base} {_cut(rest[: why.start()])}{clause.tail}?", why["v"]
    ask = who or ("Who" if verb in PERSONAL else "")
    if ask and len(short.split()) > 2:
        yield f"{ask} {verb} {short}{clause.tail}?", subject


def _counted(clause: Clause) -> Iterator[Pair]:
    """How many there are, where the subject has or did them."""
    found = re.match(rf"{SUBJECT} (?P<v>{VERBS}|has|have|contains|includes|features) (?P<rest>.+)", clause.body)
    part = NUMBER.match(found["rest"]) if found else None
    if found and part:
        subject, _ = clause.subject(found["s"])
        base = BASES.get(found["v"], "")
        behind = _cut(found["rest"][part.end() :])
        if base:
            yield f"How many {part['n']} did {subject} {base}{behind}{clause.tail}?", part["v"]
        else:
            yield f"How many {part['n']} does {subject} {_present(found['v'])}{behind}{clause.tail}?", part["v"]
    for many in re.finditer(rf"(?:^|[,;] ){NUMBER.pattern} (?P<be>were|are) (?P<rest>[^,;.]{{4,60}})", clause.body):
        yield f"How many {many['n']} {many['be']} {many['rest']}{clause.tail}?", many["v"]


def _present(verb: str) -> str:
    return {"has": "have", "contains": "contain", "includes": "include", "features": "feature"}.get(verb, verb)
