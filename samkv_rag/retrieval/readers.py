"""Readers for SimpleDirectoryReader that keep paragraphs whole.

LlamaIndex's own Markdown reader drops the blank lines between paragraphs and its HTML reader runs adjacent elements
together; sentences and chunks are then cut in the wrong places. These readers give one document for each section
(Markdown) or file, with paragraphs separated by one blank line and hard-wrapped lines joined again.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document

from samkv_rag.retrieval.errors import UnreadableFile

_handlers, _level = logging.root.handlers[:], logging.root.level
from llama_index.readers.file import PDFReader  # noqa: E402

# That import sets up logging for the whole process (basicConfig at level INFO); the application's choice is restored.
logging.root.handlers[:] = _handlers
logging.root.setLevel(_level)

PARAGRAPH = "\n\n"
_WRAPPED = 40
_NESTING = 200
"""How deep lists and quotes of Markdown are read, two for each list; what is deeper is left out."""
_HTML_BLOCKS = re.compile(
    "^(address|article|aside|blockquote|dd|div|dl|dt|figcaption|footer|h[1-6]|header|hr|li|main|ol|p|pre|section|"
    "table|td|th|title|tr|ul)$"
)
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_STATED = re.compile(r"(?:[\w.-]+[ \t]*:[^\n]*(?:\r?\n|\Z))+\Z")
_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*>")
_HTML_DROPPED = ("script", "style", "noscript", "template", "nav")


Section = tuple[list[str], list[str]]


def _decoded(content: bytes) -> str:
    """The text of a file; raises UnicodeDecodeError, and UnreadableFile if it has NULs, which no text has."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or b"\0" not in content:
        text = content.decode("utf-16" if marked else "utf-8-sig")
        if "\0" not in text:
            return text
    raise UnreadableFile("it is not text, or UTF-16 without a mark; convert that (iconv -f utf-16le -t utf-8)")


class ProseReader(BaseReader):
    """Plain text, UTF-8, or UTF-16 with a mark."""

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None, **_: Any) -> list[Document]:
        """One document with the text of `file`; a file that is not text raises what `_decoded` does."""
        source = _decoded(Path(file).read_bytes())
        return [Document(text=self.to_text(source), metadata=extra_info or {})]

    def to_text(self, source: str) -> str:
        """The paragraphs of `source`."""
        return unwrap(source)


class MarkdownProse(BaseReader):
    """Markdown as a person reads it: markup, link targets and comments removed, paragraphs and code blocks kept.

    One document per section, its headings in the metadata: a chunk further down is found by them.
    """

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None, **_: Any) -> list[Document]:
        """The sections of `file`."""
        title, source = _without_front_matter(_decoded(Path(file).read_bytes()))
        return [
            Document(text=text, metadata={**(extra_info or {}), "section": " ".join(headings)})
            for headings, text in _texts(_sections(source, title))
        ]


def _without_front_matter(source: str) -> tuple[str, str]:
    """The title that front matter states, or nothing, and the text that follows it. Between two rules there may also be
    other text: only what names what it states is front matter."""
    found = _FRONT.match(source)
    stated = _stated(found[1]) if found else None
    if found is None or not isinstance(stated, dict):
        return "", source
    title = next((value for name, value in stated.items() if str(name).lower() == "title"), None)
    told = " ".join(title.split()) if isinstance(title, str) else ""
    return "" if told in ("~", "null") else told, source[found.end() :]


def _stated(text: str) -> Any:
    """What YAML states, all of it as texts; where it is none, but nothing else than lines with names: the title."""
    try:
        return yaml.load(text, yaml.BaseLoader)
    except Exception:  # of many kinds
        title = _TITLE.search(text)
        return {"title": title[1] if title else ""} if _STATED.match(text) else None


def _texts(sections: list[Section]) -> Iterator[tuple[list[str], str]]:
    """(headings, text) of each section. One without blocks is its heading, and those of which it is the first: where
    blocks follow, the headings above are titles, which are in the metadata only."""
    titles: list[str] = []
    for (headings, blocks), (following, _) in pairwise([*sections, ([], [])]):
        titles += headings[-1:]
        if blocks:
            yield headings, _with_heading(headings, blocks)
        elif headings and headings == following[: len(headings)] != following:
            continue  # a deeper heading follows
        elif headings:
            yield headings, "\n".join(titles)
        titles = []


def _with_heading(headings: list[str], blocks: list[str]) -> str:
    """The section's text, headed by its own heading unless the first paragraph contains it anyway."""
    told = not headings or headings[-1].lower() in blocks[0].lower()
    return PARAGRAPH.join(blocks) if told else "\n".join([headings[-1], PARAGRAPH.join(blocks)])


def _sections(source: str, title: str) -> list[Section]:
    """(headings from the outermost to its own, blocks of text) for each section. A `title` is the outermost of all."""
    from markdown_it import MarkdownIt

    sections: list[Section] = [([title] if title else [], [])]
    levels = [0] if title else list[int]()
    in_heading = False
    for token in MarkdownIt("commonmark", {"maxNesting": _NESTING}).parse(source):
        if token.type == "heading_open":
            level, in_heading = int(token.tag[1:]), True
            levels = [outer for outer in levels if outer < level]
            sections.append((sections[-1][0][: len(levels)], []))
            levels.append(level)
        elif token.type in ("inline", "fence", "code_block", "html_block"):
            text = _TEXT_OF.get(token.type, _verbatim)(token)
            headings, blocks = sections[-1]
            (headings if in_heading else blocks).append(text)
            in_heading = False
    return [(headings, [block for block in blocks if block]) for headings, blocks in sections]


class HtmlProse(ProseReader):
    """HTML without scripts, styles and menus; every block element is a paragraph of its own."""

    def to_text(self, source: str) -> str:
        """The text of an HTML page, a paragraph for every block; scripts and the like are left out."""
        from bs4 import BeautifulSoup

        soup = BeautifulSoup(_DECLARATION.sub("", source), "html.parser")
        # Only the tags' own children are changed: to find a tag's place among its siblings takes ever longer.
        for tag in soup.find_all(_HTML_DROPPED):
            tag.clear(decompose=True)
        for line_break in soup.find_all("br"):
            line_break.append("\n")
        for tag in soup.find_all(_HTML_BLOCKS):
            tag.insert(0, PARAGRAPH)
            tag.append(PARAGRAPH)
        return PARAGRAPH.join(" ".join(p.split()) for p in _paragraphs(soup.get_text()))


class PdfProse(BaseReader):
    """LlamaIndex's PDF reader, all pages as one document."""

    def load_data(self, file: Path, extra_info: dict[str, Any] | None = None, **_: Any) -> list[Document]:
        """One document with the text of all pages."""
        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings would break the progress bar
        documents = PDFReader(return_full_document=True).load_data(Path(file), extra_info=extra_info)
        return [Document(text=unwrap(document.text), metadata=document.metadata) for document in documents]


def extractors() -> dict[str, BaseReader]:
    """What SimpleDirectoryReader uses for each file ending."""
    html = HtmlProse()
    return {".md": MarkdownProse(), ".txt": ProseReader(), ".html": html, ".htm": html, ".pdf": PdfProse()}


def unwrap(text: str) -> str:
    """Paragraphs of plain text with hard line wraps undone; lists, verse and tables keep their lines."""
    return PARAGRAPH.join(_join_lines(paragraph) for paragraph in _paragraphs(text))


def _paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")) if p.strip()]


def _join_lines(paragraph: str) -> str:
    lines = [" ".join(line.split()) for line in paragraph.strip().split("\n")]
    wrapped = all(len(line) >= _WRAPPED for line in lines[:-1])
    return (" " if wrapped else "\n").join(lines)


def _inline(token: Any) -> str:
    """The visible text of an inline Markdown token."""
    parts = []
    for child in token.children or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type in ("text", "code_inline", "image"):
            parts.append(child.content)
        elif child.type == "html_inline" and child.content.lower().startswith("<br"):
            parts.append(" ")
    return "".join(parts).strip()


def _verbatim(token: Any) -> str:
    return str(token.content).strip("\n")


def _html(token: Any) -> str:
    return HtmlProse().to_text(token.content)


_TEXT_OF = {"inline": _inline, "html_block": _html}
"""How the text of a Markdown token is found, if not verbatim: HTML in between has text, too."""
