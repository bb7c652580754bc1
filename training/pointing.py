"""Where an answer's evidence is among the tokens of a row: what some attention heads are taught to attend to.

Next-token loss alone teaches a small model very slowly which of many similar facts a question means. The generated
worlds say where each fact is, so some heads are also trained, by cross-entropy over what they may attend to:

bind    a stated value attends back to the end of the name of the thing that it belongs to; the end of a question to
        the end of the name or value in it
find    the end of a question attends to the end of what answers it, or for two hops of the name that leads on
answer  the end of a question attends to the beginning of the value that answers it, to copy it; where nothing answers
        it, to the `not` of the instruction
source  a stated value attends back to the beginning of the name that it belongs to, to have it at hand
seek    the end of a question that asks whose a value is attends to the end of that value
name    and then to the beginning of the name that it belongs to, to copy it

Where `answer`, `seek` or `name` has nothing to bring, it rests on the first token. Where two things are compared,
`find` attends from the end of each name in the question to its value, and `answer` to the beginning of the name that is
the answer; where things are listed, `seek` and `name` attend from the end of each member to what brings the next one.

It is a training loss only: the model stays a plain Llama.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from tokenizers import Tokenizer

from samkv_rag.eval.worlds import Draft, Question

BIND, FIND, ANSWER, SOURCE, SEEK, NAME = KINDS = ("bind", "find", "answer", "source", "seek", "name")
ARTICLE = "the "
_STOP = re.compile(r"[.!?]\s")


@dataclass(frozen=True)
class Point:
    """A head of this `kind` at token `at` should attend to one of `golds`.

    `asked`: `at` is counted within the question part; `inner`: so are `golds`.
    """

    kind: str
    at: int
    golds: tuple[int, ...]
    asked: bool = False
    inner: bool = False


@dataclass(frozen=True)
class Mention:
    """Words in a chunk: their first character in it, the places in the row of their first and last token, and of the
    first one after an article."""

    chunk: int
    start: int
    first: int
    last: int
    head: int


class Finder:
    """Finds words of the chunks among the tokens of a row."""

    def __init__(self, tokenizer: Tokenizer, chunks: Sequence[str], head: int, between: int) -> None:
        self.texts, self.starts, self.offsets = list(chunks), list[int](), list[list[int]]()
        self._mentions = cache(self._search)  # one thing is asked about in many ways
        place = head
        for number, chunk in enumerate(chunks):
            place += between * (number > 0)
            encoded = tokenizer.encode(chunk, add_special_tokens=False)
            self.starts.append(place)
            self.offsets.append([start for start, _ in encoded.offsets])
            place += len(encoded.ids)

    def mentions(self, chunks: Iterable[int], names: Sequence[str]) -> list[Mention]:
        """Every whole-word mention of one of `names` in these chunks, in order."""
        return list(self._mentions(tuple(sorted(chunks)), tuple(names)))

    def _search(self, chunks: tuple[int, ...], names: tuple[str, ...]) -> list[Mention]:
        pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)", re.IGNORECASE)
        found = list[Mention]()
        for chunk in chunks:
            for match in pattern.finditer(self.texts[chunk]):
                first, last = (self._token(chunk, at) for at in (match.start(), match.end() - 1))
                head = match.start() + len(ARTICLE) * match[0].lower().startswith(ARTICLE)
                found.append(Mention(chunk, match.start(), first, last, self._token(chunk, head)))
        return found

    def _token(self, chunk: int, character: int) -> int:
        return self.starts[chunk] + bisect_right(self.offsets[chunk], character) - 1

    def together(self, one: Mention, other: Mention) -> bool:
        """Whether both are in the same sentence."""
        low, high = sorted((one.start, other.start))
        return one.chunk == other.chunk and not _STOP.search(self.texts[one.chunk], low, high)


def name_span(tokenizer: Tokenizer, prompt: Sequence[int], name: str) -> tuple[int, int] | None:
    """The places in `prompt` of the first token of `name`, after an article, and of the last; None without it."""
    text = tokenizer.decode(list(prompt))
    if name not in text:
        return None
    end = text.index(name) + len(name)
    begin = end - len(name.removeprefix(ARTICLE))
    lengths = [len(tokenizer.decode(list(prompt[: place + 1]))) for place in range(len(prompt))]
    return bisect_right(lengths, begin), bisect_left(lengths, end)


def name_end(tokenizer: Tokenizer, prompt: Sequence[int], names: Iterable[str]) -> int | None:
    """The place in `prompt` of the last token of the longest of `names` that is in it, or None."""
    text = tokenizer.decode(list(prompt))
    inside = max((name for name in names if name in text), key=len, default=None)
    span = None if inside is None else name_span(tokenizer, prompt, inside)
    return None if span is None else span[1]


@dataclass(frozen=True)
class Aim:
    """What the end of a question should attend to, by kind of head, and the points that bind what it finds to what that
    is stated of.

    `named`: what `find` attends to from the end of a name in the question; `chosen`: which of these names is the
    answer. `steps`: what should be attended to, by kind, from the end of each member of a list."""

    ends: dict[str, list[int]]
    bound: list[Point]
    named: dict[str, list[int]] = field(default_factory=dict)
    chosen: str = ""
    steps: list[dict[str, list[int]]] = field(default_factory=list)


def aim(finder: Finder, made: Draft, order: Sequence[tuple[int, int]], question: Question) -> Aim:
    """The aim of a question on the chunks `order` of a world; nothing for a question that they do not answer."""
    if not question.needs:
        return Aim({}, [])
    needs = [order.index(place) for place in question.needs]
    shorts = {entity.name: entity.short for entity in made.entities}
    if question.facts:
        return _aim_at_facts(finder, shorts, order, question)
    if not question.subject:
        values, bound = _evidence(finder, question.value, needs, (question.answer, shorts[question.answer]))
        return Aim({SEEK: [value.last for value in values], NAME: _beginnings(finder, question.answer)}, bound)
    values, bound = _evidence(finder, question.answer, needs, (question.subject, shorts[question.subject]))
    found = values
    if not question.about:
        found, more = _first_hop(finder, made, order, question)
        bound = bound + more
    return Aim({ANSWER: [value.head for value in values], FIND: [value.last for value in found]}, bound)


def _aim_at_facts(finder: Finder, shorts: dict[str, str], order: Sequence[tuple[int, int]], question: Question) -> Aim:
    """The aim of a comparison (no common value) or of a list."""
    golds, bound = list[list[int]](), list[Point]()
    for fact in question.facts:
        needs = [order.index(place) for place in fact.chunks]
        values, points = _evidence(finder, fact.value, needs, (fact.name, shorts[fact.name]))
        golds.append([value.last for value in values])
        bound += points
    if question.value:
        names = [_beginnings(finder, fact.name) for fact in question.facts]
        members = [{SEEK: places, NAME: heads} for places, heads in zip(golds, names, strict=True)]
        return Aim(members[0], bound, steps=members[1:])
    named = {fact.name: places for fact, places in zip(question.facts, golds, strict=True)}
    return Aim({}, bound, named, question.answer)


def _beginnings(finder: Finder, name: str) -> list[int]:
    """Where a name begins, after an article."""
    return [mention.head for mention in finder.mentions(range(len(finder.texts)), [name])]


def _first_hop(
    finder: Finder, made: Draft, order: Sequence[tuple[int, int]], question: Question
) -> tuple[list[Mention], list[Point]]:
    """Where it is stated that the thing named in a two-hop question leads to the thing whose fact is the answer."""
    for entity in made.entities:
        for relation, other in entity.links.items():
            if other.name == question.subject and entity.name in question.text:
                needs = [order.index(place) for place in made.stated[id(entity), relation]]
                return _evidence(finder, other.name, needs, (entity.name, entity.short))
    return [], []


def _evidence(
    finder: Finder, answer: str, needs: Sequence[int], subject: Sequence[str]
) -> tuple[list[Mention], list[Point]]:
    """Mentions of the answer that state it, as a best guess, and the points that bind them to their subject.

    A mention counts if one of the subject's names (the full one first) comes before it in the needed chunks, in the
    same sentence if there is such a mention.
    """
    values, named = finder.mentions(needs, [answer]), finder.mentions(needs, subject)
    before = {value: [name for name in named if name.first < value.first] for value in values}
    stating = [value for value in values if before[value]]
    close = [value for value in stating if finder.together(before[value][-1], value)]
    points = [Point(BIND, at, (before[v][-1].last,)) for v in close or stating for at in {v.first, v.last}]
    heads = _beginnings(finder, subject[0])
    for value in close or stating:
        golds = tuple(head for head in heads if head < value.first)
        points += [Point(SOURCE, at, golds) for at in {value.first, value.last} if golds]
    return close or stating, points
