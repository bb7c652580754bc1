# ruff: noqa: E501 - a line is an expression
"""Facts that the lead of an encyclopaedia page states about its subject, found by rules.

A rule is tried only on sentences about the page's subject: the first, and those that begin with a pronoun, with a word
of the title or with "The film" and the like. This keeps another person's birthplace out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from training.relations import KINDS, NATION, PATTERNS
from training.texts import DATE, PLACE, plain, split

LONGEST = 8  # words of a value
MOST = 2  # values of one relation
_PERSONAL_NAMES = (
    "born birthplace died deathplace spouse father mother child sibling team position university office party "
    "debut known_for nationality occupation cause"
)
PERSONAL = frozenset(_PERSONAL_NAMES.split())
# What only a person has, so that pages about anything else are not searched for it; and what no person has.
_IMPERSONAL_NAMES = (
    "located population area length height seats founded opened director producer released capital county district "
    "country capital_of tributary held venue winner season_number owner manufacturer network operator architect "
    "headquarters genre_album performer developer publisher distributor enrollment register language family genus "
    "native_to found_in starring author founder members composer host parent_company"
)
IMPERSONAL = frozenset(_IMPERSONAL_NAMES.split())
_EARLY = frozenset(("country", "located"))  # read in the first two sentences only; later ones name other places
_ABOUT = re.compile(
    rf"(?:He|She|It|They|His|Her|Its|Their|Born|Founded|Established|Located|The (?:\w+ )?(?:{KINDS}))\b"
)
_FRONT = re.compile(
    rf"(?:In|On|Since|After|Before|During) [^,]{{1,40}}, (?:he|she|it|they|his|her|its|the (?:{KINDS}))\b"
)
_BRACKET = re.compile(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_BORN = re.compile(rf"\b(?:born|b\.)(?: [^\d;]{{0,40}}?)? ?(?P<born>{DATE})(?:,? (?:in|at) (?P<birthplace>{PLACE}))?")
_LIFE = re.compile(
    rf"(?P<born>{DATE})(?:,? (?:in )?(?P<birthplace>{PLACE}))? ?[-–—] ?(?:c\. )?(?P<died>{DATE})(?:,? (?:in )?(?P<deathplace>{PLACE}))?"
)
_DIED = re.compile(rf"\b(?:died|d\.) (?P<died>{DATE})")
_IS = re.compile(r"\b(?:is|was|are|were) (?P<article>an?|the|one of the) ")
_NOUNS = re.compile(
    r"[^.;:()]*?(?=\.(?:\s|$)|[;:()]| (?:who|that|which|whose|where|in|of|from|located|situated|based|by|for|at|on|with|"
    r"to|under|about|directed|written|known|produced|released|published|starring|playing|found|near|between|born|"
    r"created|developed|and (?:is|was|the|has|a|one)|as|featuring|serving|operated|owned|currently|comprising|along)\b"
    r"| \w+ed (?:in|by|to|on|for|at|from|as|of|near|with|and)\b|, (?!(?:[a-z-]+ ){0,3}[a-z-]+(?:,| and\b| or\b))|$)"
)
_LOOSE = re.compile(r"(?: (?:[a-z]+ly|[a-z]+ed|held|built|made|and|or|set))+$")  # the beginning of what follows
_NATION = re.compile(rf"(?:(?:former|retired|professional|late) )*(?P<v>{NATION})\b (?P<rest>.+)")
_TRADE = re.compile(
    r"\b(?:\w*(?:er|or|ist|ian|man|woman|ress|star|lete|coach|model|host|poet|critic|mathematician|lawyer|nurse|diplomat"
    r"|judge|general|chef|priest|monk|mayor|pilot|scholar|advocate|back|guard|bishop|servant|merchant|lieutenant))$"
)
_NO_TRADE = re.compile(
    r"\b(?:coaster|list|member|number|order|center|tower|theater|character|chapter|computer|trailer|cluster|layer|motor"
    r"|corridor|bomber|liner|skyscraper|carrier|destroyer|browser|retailer|provider|operator|manufacturer|developer|paper"
    r"|disorder|river|glider|polymer|processor|server|minesweeper|supplier|thriller|crater|chamber|fighter|cover|floor"
    r"|insurer|container|border|cruiser|steamer|schooner|tanker|freighter|power|water|letter|cancer|answer|super|sector"
    r"|reactor|vector|manor|harbor|error|color|tractor|helicopter|router|estonian|sectarian|flower|spider|cylinder"
    r"|quarter|counter|remainder|meter|filter|adapter|conifer|seater|variant|newspaper|star|honor|publisher|identifier"
    r"|distributor|compiler|assembler|maneuver|restaurant|liman|archiver|better|brother)$",
    re.IGNORECASE,
)
_WORK = re.compile(rf"\b(?:{KINDS})$")
_WORKS_OF_ART = re.compile(r"\b(?:film|movie|album|EP|song|single|novel|book|series|sitcom|play|musical|game)$")
_WORKS = re.compile(rf"\b(?:{KINDS})\b")


@dataclass(frozen=True)
class Fact:
    """A `value` that is in the text from `start` on."""

    relation: str
    value: str
    start: int


def read_facts(title: str, text: str) -> list[Fact]:
    """The facts of a page in the order of the text: at most two values of a relation, short ones."""
    sentences = list(split(text))
    if not sentences:
        return []
    found = [*_bracket(sentences[0][1]), *_definition(sentences[0][1])]
    person = is_person(found)
    unasked = PERSONAL if not person else IMPERSONAL
    if any(fact.relation == "definition" and _WORKS_OF_ART.search(fact.value) for fact in found):
        unasked |= {"country", "located", "county", "district", "headquarters"}
    for start, sentence in _about(plain(title), sentences):
        later = start > sentences[min(1, len(sentences) - 1)][0]
        found.extend(_stated(start, sentence, unasked | _EARLY if later else unasked))
    return sorted(_kept(found, plain(title)), key=lambda fact: fact.start)


def is_person(facts: list[Fact]) -> bool:
    """Whether a page is about a person."""
    return any(fact.relation in ("born", "died", "occupation") for fact in facts)


def kind(facts: list[Fact]) -> str:
    """The noun for what the page is about (film, song, city), empty if unknown."""
    for fact in facts:
        if fact.relation == "definition":
            words = _WORKS.findall(fact.value)
            return words[-1] if words else ""
    return ""


def _about(title: str, sentences: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    words = title.split()
    names = (title, words[0], words[-1], f"The {title}") if words[0] not in ("The", "A", "In") else (title,)
    for place, (start, sentence) in enumerate(sentences):
        if place == 0 or sentence.startswith(names) or _ABOUT.match(sentence) or _FRONT.match(sentence):
            yield start, sentence


def _stated(start: int, sentence: str, unasked: frozenset[str]) -> Iterator[Fact]:
    for relation, patterns in PATTERNS.items():
        if relation in unasked:
            continue
        for pattern in patterns:
            if found := pattern.search(sentence):
                yield Fact(relation, found["v"], start + found.start("v"))
                break


def _bracket(first: str) -> Iterator[Fact]:
    """Dates and places of a life, from the brackets after the name."""
    bracket = _BRACKET.search(first[:400])
    if not bracket or bracket.start() > 120:
        return
    found = _LIFE.search(bracket[1]) or _BORN.search(bracket[1]) or _DIED.search(bracket[1])
    if not found or not (len(found[0]) > 12 or "born" in found[0]):
        return
    for relation, value in found.groupdict().items():
        if value:
            yield Fact(relation, value, bracket.start(1) + found.start(relation))


def _definition(first: str) -> Iterator[Fact]:
    found = _IS.search(first)
    nouns = _NOUNS.match(first, found.end()) if found else None
    if not found or not nouns or not nouns[0].strip():
        return
    value = _LOOSE.sub("", nouns[0].rstrip(" ,"))
    if not value or value.endswith((" No", "U", "St")):
        return
    nation = _NATION.match(value)
    rest = nation["rest"] if nation else value
    if _TRADE.search(rest) and not _WORK.search(rest) and not _NO_TRADE.search(rest):
        if nation:
            yield Fact("nationality", nation["v"], found.end() + nation.start("v"))
        yield Fact("occupation", rest, found.end() + (nation.start("rest") if nation else 0))
    elif found["article"] in ("a", "an"):
        yield Fact("definition", value, found.end())


def _kept(found: list[Fact], title: str) -> Iterator[Fact]:
    """Leave out what is too long, repeated or no more than the title itself."""
    seen: dict[str, list[str]] = {}
    for fact in found:
        values = seen.setdefault(fact.relation, [])
        short = len(fact.value.split()) <= LONGEST
        again = any(fact.value in value or value in fact.value for value in values)
        if short and not again and len(values) < MOST and len(fact.value) > 1 and fact.value not in title:
            values.append(fact.value)
            yield fact
