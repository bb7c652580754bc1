"""Pages of real text, as they are packed for training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.real import Exclusion, passage, read_pages

SHORTEST, LONGEST = 80, 1500  # characters of a page's beginning, and of a paragraph


@dataclass(frozen=True)
class Page:
    """A page's title and the paragraphs of its beginning, as one text."""

    title: str
    text: str

    @property
    def passage(self) -> str:
        """The page as a chunk."""
        return passage(self.title, self.text)


def read_beginnings(files: Iterable[Path], exclude: Exclusion) -> list[Page]:
    """The beginning of every page: as many of its first paragraphs as fit."""
    found = list[Page]()
    for title, paragraphs in read_pages(files):
        text = ""
        for paragraph in paragraphs:
            if len(text) + len(paragraph) >= LONGEST:
                break
            text = f"{text} {paragraph}".strip()
        if len(text) >= SHORTEST and exclude.allows_text(text):
            found.append(Page(title, text))
    return found


def read_paragraphs(files: Iterable[Path], exclude: Exclusion) -> list[Page]:
    """Every paragraph as a page of its own, long ones cut at a sentence."""
    return [
        Page(title, text)
        for title, paragraphs in read_pages(files)
        for paragraph in paragraphs
        for text in _cut(paragraph)
        if len(text) >= SHORTEST and exclude.allows_text(text)
    ]


def _cut(text: str) -> Iterator[str]:
    while len(text) > LONGEST:
        end = text.rfind(". ", 0, LONGEST) + 1 or LONGEST
        yield text[:end]
        text = text[end:].strip()
    yield text
