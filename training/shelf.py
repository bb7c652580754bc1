"""The packed real text as a training run reads it: plain text, people's questions, and generated ones about pages."""

from __future__ import annotations

import lzma
import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from samkv_rag.eval.worlds import NOT_FOUND, Question
from training.asking import about_page
from training.facts import Fact
from training.linking import Link, chained, compare
from training.pages import Page
from training.passages import Encoder, Passage, Sizes, aim_at_text
from training.pointing import Finder
from training.real import Exclusion, Item, passage
from training.recurring import recurring
from training.swapping import Names, swapped

ABSENT = 0.05  # share of questions whose passage is not shown
CHARACTERS = 4.2  # per token, so that enough is drawn


@dataclass(frozen=True)
class Asked:
    """A question about the passage `gold`."""

    text: str
    answer: str
    gold: str
    task: str = "read"


Drawn = Iterator[tuple[str, list[Asked]]]
"""Chunks, with what is asked about each."""


@dataclass(frozen=True)
class Shelf:
    """All the real text that training reads: people's questions, by the passage that holds the answer (`about`), and
    those passages by title (`titled`); pages by title, the titles in order, links between pages; paragraphs of books;
    and what is never asked."""

    items: list[Item]
    about: dict[str, list[Item]]
    titled: dict[str, list[str]]
    pages: dict[str, tuple[str, list[Fact]]]
    titles: list[str]
    links: list[Link]
    paragraphs: list[Page]
    excluded: Exclusion

    @classmethod
    def open(cls, file: Path) -> Shelf:
        """The shelf that `training.pack` has packed."""
        packed = pickle.loads(lzma.decompress(file.read_bytes()))
        items = [Item(*item) for item in packed["questions"]]
        about, titled = dict[str, list[Item]](), dict[str, list[str]]()
        for item in items:
            about.setdefault(item.passages[0], []).append(item)
        for text in about:
            titled.setdefault(_title(text), []).append(text)
        pages = {title: (text, [Fact(*fact) for fact in facts]) for title, text, facts in packed["beginnings"]}
        links = [Link(title, Fact(*fact), target) for title, fact, target in packed["links"]]
        paragraphs, excluded = [Page(*page) for page in packed["paragraphs"]], Exclusion(set(packed["excluded"]))
        return cls(items, about, titled, pages, sorted(pages), links, paragraphs, excluded)

    @cached_property
    def names(self) -> Names:
        """What can replace the answers to people's questions."""
        return Names(self.items)

    def passage(self, title: str) -> str:
        """A page as a chunk."""
        return passage(title, self.pages[title][0])


def _title(text: str) -> str:
    """The title of a passage; one without a title is its own title."""
    title, separator, _ = text.partition("\n")
    return title if separator else text


def draw_text(rng: random.Random, encode: Encoder, sizes: Sizes, shelf: Shelf) -> Passage:
    """Pages and runs of paragraphs, more than fit."""
    chunks, left = list[str](), sizes.context * CHARACTERS * 1.3
    while left > 0:
        if rng.random() < 0.7:
            chunks.append(shelf.passage(rng.choice(shelf.titles)))
        else:
            start = rng.randrange(len(shelf.paragraphs))
            chunks += [page.passage for page in shelf.paragraphs[start : start + rng.randint(1, 4)]]
        left -= len(chunks[-1])
    return Passage(chunks, [], partial(aim_at_text, Finder(encode.tokenizer, [], 0, 0), {}), [])


def draw_people(rng: random.Random, encode: Encoder, sizes: Sizes, shelf: Shelf) -> Passage:
    """Passages that people asked about, often of one article, and what they asked."""
    chunks, absent = dict[str, None](), list[Item]()
    for _ in range(sizes.chunks):
        if sum(map(len, chunks)) > sizes.context * CHARACTERS:
            break
        item = rng.choice(shelf.items)
        if rng.random() < ABSENT:
            absent.append(item)
            continue
        chunks |= dict.fromkeys(item.passages)
        if rng.random() < 0.5:
            alike = shelf.titled[_title(item.passages[0])]
            chunks |= dict.fromkeys(rng.sample(alike, min(len(alike), 3)))
        if rng.random() < 0.3:
            chunks[shelf.passage(rng.choice(shelf.titles))] = None
    shown = [_perhaps_swapped(rng, sizes.swapped, shelf, text) for text in chunks]
    asked = [Asked(varied(rng, item.text), item.answer, text) for text, items in shown for item in items]
    texts = list(dict.fromkeys(text for text, _ in shown))
    return _shown(rng, encode, sizes, texts, asked, [one.text for one in absent if one.passages[0] not in chunks])


def _perhaps_swapped(rng: random.Random, share: float, shelf: Shelf, text: str) -> tuple[str, list[Item]]:
    items = shelf.about.get(text, [])
    return swapped(rng, shelf.names, text, items) if items and rng.random() < share else (text, items)


def varied(rng: random.Random, question: str) -> str:
    """The question, sometimes without one of its words or without capitals: there are few, each comes many times, and
    they must not be learned by heart."""
    words = question.split()
    if len(words) > 5 and rng.random() < 0.3:
        del words[rng.randrange(1, len(words))]
    text = " ".join(words)
    return text.lower().rstrip("?") if rng.random() < 0.15 else text


def draw_made(rng: random.Random, encode: Encoder, sizes: Sizes, shelf: Shelf) -> Passage:
    """Pages, some of them alike or linked, and generated questions about them."""
    chunks, asked, absent = dict[str, None](), list[Asked](), list[str]()
    for _ in range(sizes.chunks):
        if sum(map(len, chunks)) > sizes.context * CHARACTERS:
            break
        if rng.random() < ABSENT:
            absent += [one.text for _, asked_ in _page(rng, shelf, rng.choice(shelf.titles)) for one in asked_[:1]]
        for text, questions in rng.choice(_WAYS)(rng, shelf):
            chunks[text] = None
            asked += questions
    asked = [one for one in asked if shelf.excluded.allows_question(one.text)]
    return _shown(rng, encode, sizes, list(chunks), asked, absent)


def _page(rng: random.Random, shelf: Shelf, title: str) -> Drawn:
    gold, (text, facts) = shelf.passage(title), shelf.pages[title]
    yield gold, [Asked(*pair, gold) for pair in about_page(rng, title, text, facts)]


def _single(rng: random.Random, shelf: Shelf) -> Drawn:
    return _page(rng, shelf, rng.choice(shelf.titles))


def _paragraph(rng: random.Random, shelf: Shelf) -> Drawn:
    """A paragraph of a book."""
    page = rng.choice(shelf.paragraphs)
    yield page.passage, [Asked(*pair, page.passage) for pair in about_page(rng, page.title, page.text, [])]


def _cut(rng: random.Random, shelf: Shelf) -> Drawn:
    """A page without one of its sentences, which is the question."""
    title = rng.choice(shelf.titles)
    cuts = recurring(rng, title, shelf.pages[title][0])
    if cuts:
        text, answer, rest = rng.choice(cuts)
        gold = passage(title, rest)
        yield gold, [Asked(text, answer, gold, "blank")]


def _neighbours(rng: random.Random, shelf: Shelf) -> Drawn:
    """Pages with similar titles, and what is asked about each and about two together."""
    start = rng.randrange(len(shelf.titles) - 3)
    titles = shelf.titles[start : start + rng.randint(2, 3)]
    for title in titles:
        yield from _page(rng, shelf, title)
    yield from _compared(rng, shelf, titles[0], titles[-1])


def _linked(rng: random.Random, shelf: Shelf) -> Drawn:
    """Two pages, the first of which names the second, questions over both, and two more pages like them."""
    link, other = rng.sample(shelf.links, 2)
    for title in (link.title, link.target, other.title, other.target):
        yield from _page(rng, shelf, title)
    for one in (link, other):
        gold = shelf.passage(one.target)
        chains = [Asked(chain.question, chain.answer, gold, "chain") for chain in chained(rng, shelf.pages, one)]
        yield gold, chains
    yield from _compared(rng, shelf, link.title, other.title)
    yield from _compared(rng, shelf, link.target, other.target)


def _compared(rng: random.Random, shelf: Shelf, one: str, other: str) -> Drawn:
    gold, pairs = shelf.passage(one), ((title, shelf.pages[title][1]) for title in (one, other))
    yield gold, [Asked(*pair, gold, "pair") for pair in compare(rng, *pairs)]


_WAYS = (_single, _single, _paragraph, _cut, _neighbours, _linked)


def _shown(
    rng: random.Random, encode: Encoder, sizes: Sizes, chunks: list[str], asked: Sequence[Asked], absent: Sequence[str]
) -> Passage:  # fmt: skip
    """The chunks that fit, in random order, and the questions about them; a few are about others."""
    rng.shuffle(chunks)
    lengths = [len(encode.between) + len(encode(chunk)) for chunk in chunks]
    room, fit = sizes.context - len(encode.head), 0
    while fit < len(chunks) and sum(lengths[: fit + 1]) <= room:
        fit += 1
    chunks = chunks[: max(1, fit)]
    places = {one.text: chunks.index(one.gold) for one in asked if one.gold in chunks}
    questions = [Question(one.text, one.answer, one.task) for one in asked if one.text in places]
    rng.shuffle(questions)
    questions += [Question(text, NOT_FOUND, "unanswerable") for text in absent]
    finder = Finder(encode.tokenizer, chunks, len(encode.head), len(encode.between))
    return Passage(chunks, questions, partial(aim_at_text, finder, places), [])


DRAWN = {"text": draw_text, "people": draw_people, "made": draw_made}
