"""Questions over two pages: a fact of one names the other (chains), or both have a fact of the same kind (compare)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.asking import TYPED, Pair, casual, fill, named
from training.facts import Fact, is_person, kind
from training.texts import MONTH, normal, plain
from training.wordings import ASKED, FIRST, HOPS, HUMAN_HOPS, LAST, LINKED, SAME

NO = 0.25  # share of "no" that is kept: two random pages have hardly anything in common
Pages = Mapping[str, tuple[str, list[Fact]]]
_MONTHS = MONTH.removeprefix("(?:").rstrip(")").split("|")
_YEAR = re.compile(r"\b(1[0-9]|20)\d\d\b")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_UNITS = {"kilo": 1000.0, "km": 1000.0, "mi": 1609.3, "f": 0.3048, "m": 1.0, "sq": 1.0, "h": 1.0, "a": 1.0}
_SKIPPED = frozenset(
    ("definition", "occupation", "season_number", "genre_album", "also_known", "character", "held", "venue")
)
_OF_WORKS = frozenset(("director", "author", "performer", "starring", "producer", "released", "label"))
_BODIES = frozenset(("team", "league", "university", "owner", "operator", "developer", "publisher", "label", "network"))
_PLACED = frozenset(
    ("birthplace", "deathplace", "located", "headquarters", "county", "district", "capital", "venue", "birthplace")
)
_NOT_OF_PLACES = frozenset(
    ("opened", "parent_company", "league", "held", "venue", "team", "award", "manufacturer", "owner", "headquarters")
)
_DATES = frozenset(("born", "died", "released", "founded", "opened", "held"))


@dataclass(frozen=True)
class Link:
    """A `fact` of the page `title` that names the page `target`."""

    title: str
    fact: Fact
    target: str


@dataclass(frozen=True)
class Chain:
    """A question that needs both pages: the first names the second, which holds the answer."""

    question: str
    answer: str
    titles: tuple[str, str]


def links(pages: Pages) -> list[Link]:
    """All links among the pages. A name that several pages share is left out: the target would be a guess."""
    index: dict[str, list[str]] = {}
    for title in pages:
        index.setdefault(normal(title), []).append(title)
    return [
        Link(title, fact, target)
        for title, (_, facts) in pages.items()
        for fact in facts
        if fact.relation in HOPS and (target := _target(index, pages, title, fact))
    ]


def _target(index: Mapping[str, list[str]], pages: Pages, title: str, fact: Fact) -> str:
    for value in (fact.value, fact.value.split(",")[0], fact.value.removeprefix("the ")):
        found = index.get(value.lower(), [])
        if len(found) == 1 and found[0] != title:
            return found[0] if _fits(fact.relation, pages[found[0]][1]) else ""
    return ""


def _fits(relation: str, facts: list[Fact]) -> bool:
    """Whether a page with these facts can be what the relation names: a film is nobody's birthplace."""
    if relation in ("known_for", "named_after"):
        return True
    if is_person(facts):
        return relation in HUMAN_HOPS or relation in ("performer", "owner")
    settled = any(fact.relation in ("population", "capital", "county") for fact in facts)
    if settled and relation in _BODIES:
        return False
    made = any(fact.relation in _OF_WORKS for fact in facts) or kind(facts) in TYPED
    return not made and relation not in HUMAN_HOPS


def chains(rng: random.Random, pages: Pages, known: list[Link] | None = None) -> Iterator[Chain]:
    """A question for every fact at the end of every link; `known`: the links of these pages, if already found."""
    for link in links(pages) if known is None else known:
        yield from chained(rng, pages, link)


def chained(rng: random.Random, pages: Pages, link: Link) -> Iterator[Chain]:
    """The questions that follow one link."""
    subject = named(rng, link.title, pages[link.title][1])
    for fact in pages[link.target][1]:
        if fact.relation in _SKIPPED or (link.fact.relation in _PLACED and fact.relation in _NOT_OF_PLACES):
            continue
        if normal(link.title) in fact.value.lower():
            continue
        phrase = fill(rng.choice(HOPS[link.fact.relation]), subject)
        templates = [one for one in ASKED[fact.relation] if "{p}" not in one and not one.endswith("from?")]
        question = fill(rng.choice(templates), phrase)
        if fact.value.lower() not in question.lower():
            yield Chain(casual(rng, question), fact.value, (link.title, link.target))


def compare(rng: random.Random, page_a: tuple[str, list[Fact]], page_b: tuple[str, list[Fact]]) -> list[Pair]:
    """Questions whose answer is one of two pages, each given by title and facts, or yes or no."""
    one, other = (plain(page[0]) for page in (page_a, page_b))
    person = is_person(page_a[1])
    if person != is_person(page_b[1]) or one == other or (not person and kind(page_a[1]) != kind(page_b[1])):
        return []
    what = kind(page_a[1])
    values = {fact.relation: fact.value for fact in reversed(page_a[1])}
    others = {fact.relation: fact.value for fact in reversed(page_b[1])}
    found = list[Pair]()
    for relation in sorted(values.keys() & others.keys()):
        pair = (values[relation], others[relation])
        found += _ordered(rng, relation, (one, other), pair, what) or _same(rng, relation, (one, other), pair, what)
    return [(casual(rng, question), answer) for question, answer in found]


def compare_linked(rng: random.Random, pages: Pages, one: Link, other: Link) -> list[Pair]:
    """Ask which of two works has the older director, and the like: answering takes four pages in all."""
    kinds = [kind(pages[link.title][1]) for link in (one, other)]
    role = LINKED.get(one.fact.relation, [""])[0]
    if one.fact.relation != other.fact.relation or kinds[0] != kinds[1] or not (kinds[0] and role):
        return []
    names = (plain(one.title), plain(other.title))
    if one.target == other.target or names[0] == names[1]:
        return []
    first, second = ({fact.relation: fact.value for fact in reversed(pages[link.target][1])} for link in (one, other))
    words = {"k": kinds[0], "r": role}
    found = list[Pair]()
    for relation in sorted(first.keys() & second.keys() & {"born", "died"}):
        sizes = [measure(relation, value[relation]) for value in (first, second)]
        found += _older(rng, relation, names, sizes, words)
    found += _compatriots(rng, names, (first.get("nationality", ""), second.get("nationality", "")), words)
    return [(casual(rng, question), answer) for question, answer in found]


def _older(
    rng: random.Random, relation: str, names: Pair, sizes: list[float | None], words: dict[str, str]
) -> list[Pair]:
    first, second = sizes
    if first is None or second is None or int(first) == int(second):
        return []
    found = list[Pair]()
    for end, answer in (("first", names[first > second]), ("last", names[first < second])):
        a, b = rng.sample(names, 2)
        template = rng.choice(LINKED[f"{relation}_{end}"])
        found.append((template.format(a=a, b=b, **words), answer))
    return found


def _compatriots(rng: random.Random, names: Pair, nations: Pair, words: dict[str, str]) -> list[Pair]:
    if not all(nations) or (nations[0] != nations[1] and (rng.random() > NO or nations[0] in nations[1])):
        return []
    a, b = rng.sample(names, 2)
    return [(rng.choice(LINKED["same"]).format(a=a, b=b, **words), "yes" if nations[0] == nations[1] else "no")]


def _ordered(rng: random.Random, relation: str, names: Pair, values: Pair, what: str) -> list[Pair]:
    first, second = (measure(relation, value) for value in values)
    if relation not in FIRST or first is None or second is None or first == second:
        return []
    coarse = relation in _DATES and int(first) == int(second)
    if coarse and not (first % 1 and second % 1):
        return []  # a year alone says nothing about the order within it
    lowest = names[first > second]
    found = list[Pair]()
    for table, answer in ((FIRST, lowest), (LAST, names[first < second])):
        template = rng.choice(table[relation]).replace("{k}", what or "one")
        a, b = rng.sample(names, 2)
        found.append((template.format(a=a, b=b), answer))
    return found


def _same(rng: random.Random, relation: str, names: Pair, values: Pair, what: str) -> list[Pair]:
    if relation not in SAME:
        return []
    one, other = (value.lower() for value in values)
    if one != other and (one in other or other in one):
        return []
    a, b = rng.sample(names, 2)
    if one != other and rng.random() > NO:
        return []
    return [(rng.choice(SAME[relation]).format(a=a, b=b), "yes" if one == other else "no")]


def measure(relation: str, value: str) -> float | None:
    """A date in years, or a size in metres or in whatever is counted; None if it has no number."""
    if relation in _DATES:
        return _date(value)
    number = _NUMBER.search(value)
    if not number:
        return None
    size = float(number[0].replace(",", ""))
    unit = value[number.end() :].strip(" -")
    if relation == "area":
        factor = {"square m": 2.59, "hectare": 0.01, "ha": 0.01, "acre": 0.004047}
        return size * next((by for start, by in factor.items() if unit.startswith(start)), 1.0)
    if unit.startswith(("million", "billion")):
        return size * (1e6 if unit.startswith("m") else 1e9)
    if relation in ("length", "height"):
        if unit.startswith(("m", "met")) and not unit.startswith("mi"):
            return size
        return size * next((by for start, by in _UNITS.items() if unit.startswith(start)), 1.0)
    return size


def _date(value: str) -> float | None:
    year = _YEAR.search(value)
    if not year:
        return None
    month = next((place for place, name in enumerate(_MONTHS) if name in value), None)
    if month is None:
        return float(year[0])
    day = re.search(r"\b\d{1,2}\b", value)
    return int(year[0]) + (month * 31 + (int(day[0]) if day else 1)) / 400
