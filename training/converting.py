"""Statements turned into questions: every sentence of a text that has one of a few shapes is asked about.

The subject precedes the verb; a pronoun or "The film" there is replaced by the page's title. The question then asks for
a date, a place, an agent, a number, an object or the subject itself. A second verb ("and was sold in 1990") and a
relative clause ("Ann Cole, who built it") are statements of their own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from training import shapes
from training.facts import Fact, is_person, kind
from training.texts import plain, split
from training.verbs import BASES, PAST, PRESENT

Pair = tuple[str, str]
LONGEST = 24  # words of a question
_YEARS = ("In what year", "What year", "When", "When")
_DAYS = ("When", "When", "On what date")


@dataclass(frozen=True)
class Page:
    """Who or what the statements of a text are about."""

    name: str
    person: bool
    what: str

    def subject(self, written: str) -> tuple[str, str]:
        """The subject as it is put in a question, and the word that asks for it, empty if unknown."""
        found = shapes.PRONOUN.match(written)
        if found or self._is_name(written):
            human = written.lower() in ("he", "she") or (self.person and not (found and found["kind"]))
            return self.name, "Who" if human else f"Which {self.what}" if self.what else "What"
        return written[0].lower() + written[1:] if written.startswith("The ") else written, ""

    def _is_name(self, written: str) -> bool:
        ends = (self.name.split()[0], self.name.split()[-1])
        given = written.split()
        return written == self.name or given[-1:] == [self.name] or (given[0], given[-1]) == ends or written == ends[1]


@dataclass(frozen=True)
class Statement:
    """A subject, the word that asks for it, its verb and what follows, and what preceded it in the sentence."""

    subject: str
    who: str
    verb: str
    rest: str
    tail: str = ""
    be: str = ""

    @property
    def short(self) -> str:
        """What follows the verb, up to where another clause may begin."""
        return _cut(self.rest)

    def ask(self, words: str, rest: str) -> str:
        """The question that begins with `words` and ends with `rest`."""
        if self.be.endswith(" been"):
            return f"{words} {self.be.split()[0]} {self.subject} been {self.verb}{rest}?"
        if self.be:
            return f"{words} {self.be} {self.subject} {self.verb}{rest}?"
        did, base = ("does", PRESENT[self.verb]) if self.verb in PRESENT else ("did", BASES[self.verb])
        return f"{words} {did} {self.subject} {base}{rest}?"

    def of_subject(self, word: str, rest: str) -> str:
        """The question that asks for the subject."""
        return f"{word} {self.be} {self.verb}{rest}?".replace("  ", " ")


def convert(rng: random.Random, title: str, text: str, facts: list[Fact]) -> Iterator[Pair]:
    """Questions and answers about the sentences of a text."""
    page = Page(plain(title), is_person(facts), kind(facts))
    for _, sentence in split(text):
        clean = shapes.BRACKETS.sub("", sentence).rstrip(".!?\"' ")
        front = shapes.FRONT.match(clean)
        tail = f" {front['prep'].lower()} {front['when']}" if front else ""
        for question, answer in _asked(rng, page, front["rest"] if front else clean, tail):
            if _sound(question, page):
                yield question, answer.strip()
    yield from ((f"Who is the {found['role']}?", found["v"]) for found in shapes.APPOSITION.finditer(text))


def _sound(question: str, page: Page) -> bool:
    """Whether a question is short enough, leaves nobody unnamed, and is not cut off in the middle."""
    strange = shapes.UNNAMED_THING if page.person else shapes.UNNAMED_PERSON
    return (
        len(question.split()) <= LONGEST
        and not shapes.UNNAMED.search(question)
        and not strange.search(question)
        and not shapes.DANGLING.search(question)
        and "  " not in question
    )


def _asked(rng: random.Random, page: Page, body: str, tail: str) -> Iterator[Pair]:
    if found := shapes.THE.match(body):
        yield from _superlative(page, found, tail)
    for statement in _statements(page, body, tail):
        yield from _dates(rng, statement)
        yield from _places(rng, statement)
        yield from _agents(statement) if statement.be else _objects(statement)
        yield from _reasons(statement)
        yield from _subjects(statement)
        yield from _counts(statement)


def _statements(page: Page, body: str, tail: str) -> Iterator[Statement]:
    found = shapes.PASSIVE.match(body) or shapes.ACTIVE.match(body)
    if found and not shapes.THE.match(body):
        subject, who = page.subject(found["s"])
        yield _statement(subject, who, found, tail)
        for more in shapes.AND.finditer(body, found.end("v")):
            if not (found["p"] and more["v"] and more["v"].endswith("ed")):  # "was bought and closed": a participle
                yield _statement(subject, who, more, "")
    for relative in shapes.RELATIVE.finditer(body):
        word = "Who" if relative["w"] == "who" else "What"
        yield _statement(relative["s"], word, relative, "")


def _statement(subject: str, who: str, found: re.Match[str], tail: str) -> Statement:
    if found["p"]:
        return Statement(subject, who, found["p"], found["rest"], tail, found["be"])
    return Statement(subject, who, found["v"], found["rest"], tail)


def _cut(rest: str) -> str:
    found = shapes.STOP.search(rest)
    return rest[: found.start()] if found else rest


def _without(rest: str, found: re.Match[str]) -> str:
    """The words before what is asked for, and those after it as far as they belong to them."""
    before, behind = rest[: found.start()].strip(" ,"), _cut(rest[found.end() :]).strip()
    return "".join(f" {part}" for part in (before, behind) if part)


def _superlative(page: Page, found: re.Match[str], tail: str) -> Iterator[Pair]:
    subject, who = page.subject(found["s"])
    ask = "Who" if who == "Who" else "What"
    yield f"{ask} {found['be']} {found['d']}{tail}?", subject
    if len(found["d"].split()) <= 8:
        yield f"{ask} {found['be']} {subject}{tail}?", found["d"]


def _when(rng: random.Random, date: str) -> str:
    return rng.choice(_YEARS if date.isdigit() else _DAYS if date[-1:].isdigit() else ("When",))


def _dates(rng: random.Random, one: Statement) -> Iterator[Pair]:
    if one.tail and len(one.short.split()) > (not one.be):
        date = one.tail.split(" ", 2)[2]
        yield one.ask(_when(rng, date), f" {one.short}"), date
    part = shapes.WHEN.search(one.rest)
    if part and part.start() < 70 and not one.tail and ", " not in one.rest[: part.start()]:
        words = "Since when" if part["prep"] == "since" else _when(rng, part["v"])
        yield one.ask(words, _without(one.rest, part)), part["v"]


def _places(rng: random.Random, one: Statement) -> Iterator[Pair]:
    part = shapes.WHERE.search(one.rest)
    if not part or part.start() >= 50 or ", " in one.rest[: part.start()] or one.verb in shapes.NO_PLACES:
        return
    if one.be or part.start():
        yield one.ask(rng.choice(("Where", "Where", "In what place")), _without(one.rest, part) + one.tail), part["v"]


def _agents(one: Statement) -> Iterator[Pair]:
    part = shapes.BY.search(one.short)
    if part and one.verb != "based":
        rest = _without(one.short, part) + one.tail
        thing = one.verb in shapes.BY_THINGS
        yield one.ask("What" if thing else "Who", f" by{rest}"), part["v"]
        past = PAST.get(one.verb, one.verb)
        if one.be in ("was", "were") and not thing and (past in BASES or past.endswith("ed")):
            yield f"Who {past} {one.subject}{rest}?", part["v"]


def _objects(one: Statement) -> Iterator[Pair]:
    part = shapes.OBJECT.match(one.rest)
    if not part:
        return
    last = part["v"].split()[-1].lower()
    words = "Who" if one.verb in shapes.UPON_PEOPLE else f"What {last}" if last in shapes.SORTS else "What"
    yield one.ask(words, _without(one.rest, part) + one.tail), part["v"]


def _reasons(one: Statement) -> Iterator[Pair]:
    why = shapes.WHY.search(one.rest)
    if why and why.start() < 90:
        yield one.ask("Why", f" {_cut(one.rest[: why.start()])}{one.tail}"), why["v"]


def _subjects(one: Statement) -> Iterator[Pair]:
    word = one.who or ("Who" if one.verb in shapes.PERSONAL and not one.be else "")
    if word and len(one.short.split()) > 2:
        yield one.of_subject(word, f" {one.short}{one.tail}"), one.subject


def _counts(one: Statement) -> Iterator[Pair]:
    """Ask how many of something the subject has or did."""
    part = shapes.NUMBER.match(one.rest)
    if part and not one.be:
        yield one.ask(f"How many {part['n']}", f"{_cut(one.rest[part.end() :])}{one.tail}"), part["v"]
