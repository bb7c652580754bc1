"""Questions with short answers about encyclopaedia pages, made by rules from their facts and their sentences.

A question written by a person costs minutes; these cost nothing and come in many wordings, so that a reader cannot
mistake one form for the task. Every answer appears in the page, title and text, exactly as it is given.
"""

from __future__ import annotations

import random

from training.converting import convert
from training.facts import Fact, is_person, kind
from training.texts import plain
from training.wordings import ASKED, INVERSE

Pair = tuple[str, str]
CASUAL = 1 / 3  # share of questions written as people type them: lower case, no question mark
_EMPTY = frozenset(("one", "member", "part", "list", "name", "number", "title", "term", "type", "series"))
_TYPES = "film movie album EP song single novel book magazine series musical opera play episode"
TYPED = frozenset(_TYPES.split())


def about_page(rng: random.Random, title: str, text: str, facts: list[Fact]) -> list[Pair]:
    """Every question that the rules find about a page, in random order, with its answer."""
    found = [one for fact in facts for one in (*_direct(rng, title, facts, fact), *_inverse(rng, title, facts, fact))]
    found += convert(rng, title, text, facts)
    shown = f"{title}\n{text}"
    kept = {
        question: answer for question, answer in found if answer in shown and answer.lower() not in question.lower()
    }
    pairs = [(casual(rng, question), answer) for question, answer in kept.items()]
    rng.shuffle(pairs)
    return pairs


def casual(rng: random.Random, question: str) -> str:
    """The question in its written form, or as it is typed into a search box."""
    return question.lower().rstrip("?.") if rng.random() < CASUAL else question[0].upper() + question[1:]


def named(rng: random.Random, title: str, facts: list[Fact]) -> str:
    """The page's subject as a question names it: for works, often preceded by what they are."""
    name, what = plain(title), kind(facts)
    if what in TYPED and not is_person(facts) and rng.random() < 0.5:
        return rng.choice((f"the {what} {name}", f"{what} {name}", f'the {what} "{name}"'))
    return name


def possessive(name: str) -> str:
    """The possessive of a name."""
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def fill(template: str, subject: str) -> str:
    """Fill a template with its subject."""
    return template.format(s=subject, p=possessive(subject))


def _direct(rng: random.Random, title: str, facts: list[Fact], fact: Fact) -> list[Pair]:
    personal = fact.relation == "definition" and is_person(facts)
    template = rng.choice(ASKED["occupation" if personal else fact.relation])
    if fact.relation == "definition" and (fact.value in _EMPTY or " " not in fact.value and rng.random() < 0.5):
        return []  # otherwise a page's first word for itself, "town", is asked for too often
    return [(fill(template, named(rng, title, facts)), fact.value)]


def _inverse(rng: random.Random, title: str, facts: list[Fact], fact: Fact) -> list[Pair]:
    """Ask for the page by one of its facts, if enough is known to say what it is."""
    values = {one.relation: one.value for one in facts}
    if fact.relation not in INVERSE:
        return []
    template = rng.choice(INVERSE[fact.relation])
    words = {
        "v": fact.value,
        "k": kind(facts),
        "d": values.get("definition", ""),
        "n": values.get("nationality", ""),
        "o": values.get("occupation", ""),
    }
    if any(not words[key] for key in words if f"{{{key}}}" in template):
        return []
    described = words["d"] if "{d}" in template else ""
    if fact.value in described or (template.startswith("Who") and not is_person(facts)):
        return []
    return [(template.format(**words), plain(title))]
