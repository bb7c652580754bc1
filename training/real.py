"""Rows of real text for the reader: question sets with their passages, and sentences to complete.

The text is outside the project, in the form that its own README describes: gzip JSONL of questions `{question,
answers[], passages: [{title, text}], supporting[]}`, and gzip text with `# title` lines. `Exclusion` keeps out what
evaluation uses: its questions, and any text that shares 13 words in a row with one of its passages.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

SHINGLE = 13  # words in a row that count as the same text, the length used for GPT-3's contamination check
_WITHOUT = "leave out [real] and the stages with `real = true`"
_WORDS = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def words(text: str) -> list[str]:
    """The words of `text` in lower case, without punctuation."""
    return _WORDS.findall(text.lower())


def passage(title: str, text: str) -> str:
    """A passage as a chunk: its title on a line of its own, if it has one."""
    return f"{title.strip()}\n{text.strip()}" if title.strip() else text.strip()


@dataclass
class Exclusion:
    """What training must not see: normalised questions, and runs of `SHINGLE` words of passages, as hashes."""

    questions: set[str] = field(default_factory=set)
    shingles: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, files: Iterable[Path]) -> Exclusion:
        """Everything in these evaluation files."""
        found = cls()
        for file in files:
            for record in read_jsonl(file):
                found.questions.add(" ".join(words(record["question"])))
                for one in record["passages"]:
                    found.add_text(one["text"])
        return found

    def add_text(self, text: str) -> None:
        """Exclude this text and every part of it that is long enough."""
        self.shingles.update(_shingles(text))

    def allows_question(self, text: str) -> bool:
        """False for a question that is asked in an evaluation set, however it is written."""
        return " ".join(words(text)) not in self.questions

    def allows_text(self, text: str) -> bool:
        """False for a text that shares `SHINGLE` words in a row with an evaluation passage, or is the whole of one."""
        return self.shingles.isdisjoint(_shingles(text))


def _shingles(text: str) -> Iterator[int]:
    found = words(text)
    for start in range(max(1, len(found) - SHINGLE + 1)):
        yield hash(tuple(found[start : start + SHINGLE]))


@dataclass(frozen=True)
class Item:
    """A question about real text, or the beginning of a sentence (`asked` False), with its answer and its passages.

    The first passage holds the answer; the others came with it.
    """

    text: str
    answer: str
    passages: tuple[str, ...]
    asked: bool = True


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file, gzip or not."""
    raw = file.read_bytes()
    for line in (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().split("\n"):
        if line:
            yield json.loads(line)


def read_questions(files: Iterable[Path], exclude: Exclusion, longest: int = 1200) -> list[Item]:
    """The questions of `files`, with the first answer that is in a passage of at most `longest` characters."""
    found = list[Item]()
    for file in files:
        for record in read_jsonl(file):
            item = _item(record, longest)
            if item and exclude.allows_question(item.text) and all(map(exclude.allows_text, item.passages)):
                found.append(item)
    return found


def _item(record: dict[str, Any], longest: int) -> Item | None:
    texts = [passage(one.get("title", ""), one["text"]) for one in record["passages"]]
    for answer in record["answers"]:
        gold = [text for text in texts if answer in text and len(text) <= longest]
        if gold:
            rest = tuple(text for text in texts if text != gold[0] and len(text) <= longest)
            return Item(record["question"].strip(), answer, (gold[0], *rest))
    return None


def read_pages(files: Iterable[Path]) -> Iterator[tuple[str, list[str]]]:
    """Title and paragraphs of every page."""
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as opened:
            for page in opened.read().split("\n# "):
                title, _, body = page.lstrip("# ").partition("\n")
                yield title.strip(), [line.strip() for line in body.split("\n") if line.strip()]


def read_paragraphs(files: Iterable[Path], exclude: Exclusion, longest: int = 1200) -> list[str]:
    """The first paragraph of every page, with its title, of at most `longest` characters."""
    texts = (passage(title, paragraphs[0] if paragraphs else "") for title, paragraphs in read_pages(files))
    return [text for text in texts if 80 <= len(text) <= longest and exclude.allows_text(text)]


def sentences(rng: random.Random, text: str) -> Iterator[Item]:
    """The sentences of a passage, cut at random after the third word: the beginning asks for the next few words."""
    for sentence in _SENTENCE.split(text.partition("\n")[2] or text):
        found = sentence.split()
        if len(found) >= 8:
            cut = rng.randint(4, len(found) - 3)
            yield Item(" ".join(found[:cut]), " ".join(found[cut : cut + rng.randint(1, 3)]), (text,), asked=False)


@dataclass(frozen=True)
class Library:
    """All the real text that training reads."""

    questions: list[Item]
    paragraphs: list[str]

    @classmethod
    def of(cls, options: dict[str, Any]) -> Library:
        """The library that a configuration's `[real]` table names: `folder`, `evaluation`, `questions`, `text`."""
        folder = Path(options["folder"])
        try:
            exclude = Exclusion.of(folder / name for name in options["evaluation"])
            questions = read_questions([folder / name for name in options["questions"]], exclude)
            paragraphs = read_paragraphs([folder / name for name in options["text"]], exclude)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is not there; {_WITHOUT}") from error
        if not questions or not paragraphs:
            raise ValueError(f"no text for training in {folder}; {_WITHOUT}")
        return cls(questions, paragraphs)

    @cached_property
    def about(self) -> dict[str, list[Item]]:
        """The questions by the passage that holds their answer."""
        found: dict[str, list[Item]] = {}
        for item in self.questions:
            found.setdefault(item.passages[0], []).append(item)
        return found

    def draw(self, rng: random.Random, chunks: int) -> tuple[list[str], list[Item]]:
        """At most `chunks` passages in random order, and what is asked about them.

        Half of the golds come with the other passages of their question; the rest are golds of other questions. There
        are also a few sentences to complete.
        """
        passages = dict[str, None]()
        while len(passages) < chunks:
            item = rng.choice(self.questions)
            passages |= dict.fromkeys(item.passages[: 1 if rng.random() < 0.5 else None])
            if rng.random() < 0.5:
                passages[rng.choice(self.paragraphs)] = None
        shown = list(passages)[:chunks]
        rng.shuffle(shown)
        asked = [item for text in shown for item in self.about.get(text, ())]
        rng.shuffle(asked)
        clozes = [item for text in shown for item in sentences(rng, text)]
        rng.shuffle(clozes)
        return shown, [*asked, *clozes[: max(1, len(asked) // 2)]]
