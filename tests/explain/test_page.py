"""The page: everything escaped, nothing from outside, and the counts of the report."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from samkv_rag.explain import Explanation, explain
from tests.models import tiny_engine

EVIL = "<script>document.title = 'run'</script> &amp; \"<img src=x onerror=alert(1)>\" </p></section>"
CHUNKS = ["Lumen Labs is a company in Oslo that was founded in 1987.", EVIL, "The company moved. {{ 7 * 7 }} {% raw %}"]
ASKED = "<b>Where</b> is it based?"


@pytest.fixture(scope="module")
def seen() -> Explanation:
    methods = ["samkv:keep=0.4,initial=4,local=4,recompute=0.5", "samkv:keep=0.3", "cacheblend", "full"]
    return explain(tiny_engine(), ASKED, CHUNKS, methods, max_new_tokens=3)


class Read(HTMLParser):
    """Tags, and the method, classes, tokens, text and tip of every part."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.parts: list[dict[str, str]] = []
        self.method, self._open = "", list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes |= {f"{name}={value}" for name, value in found.items()}
        if tag == "details":
            self.method = found["data-method"]
        if tag == "span":
            self._open.append(found.get("role", "part"))
            if "data-tokens" in found:
                self.parts.append({"method": self.method, "text": "", "tip": "", **found})

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self.method:
            self.parts[-1]["tip" if self._open[-1] == "tooltip" else "text"] += data

    def tokens(self, method: str, word: str) -> int:
        return sum(int(p["data-tokens"]) for p in self.parts if p["method"] == method and word in p["class"].split())


def test_the_counts_on_the_page_are_the_reports(seen: Explanation) -> None:
    read = Read(seen.html)
    for method in seen.methods:
        report = method.answer.report
        assert read.tokens(method.label, "part") == report.chunk_tokens
        assert read.tokens(method.label, "dropped") == report.dropped_tokens
        assert read.tokens(method.label, "recomputed") == report.recomputed_tokens
        assert read.tokens(method.label, "reused") == report.reused_tokens
        kept = sum(read.tokens(method.label, word) for word in ("anchor", "selected", "kept", "packed"))
        assert kept == report.kept_tokens
        assert f"{report.kept_tokens} kept" in seen.html
        assert f"{100 * report.kept_ratio:.1f} %" in seen.html


def test_every_chunks_text_is_whole_and_every_part_has_its_tip(seen: Explanation) -> None:
    read = Read(seen.html)
    for method in seen.methods:
        assert "".join(p["text"] for p in read.parts if p["method"] == method.label) == "".join(CHUNKS)
    assert all(re.match(r"Block \d+, tokens \d+ to \d+; ", part["tip"]) for part in read.parts)
    assert all(part["tabindex"] == "0" for part in read.parts)
    ranked = [part["tip"] for part in read.parts if part["method"].startswith("samkv")]
    assert all(re.search(r"score [+-]\d", tip) for tip in ranked)


def test_nothing_in_the_page_runs_or_asks_for_anything_outside(seen: Explanation) -> None:
    read = Read(seen.html)
    assert EVIL in "".join(part["text"] for part in read.parts), "it is shown, as text"
    assert not {"script", "img", "link", "iframe", "object", "form", "b", "base"} & set(read.tags)
    assert not [a for a in read.attributes if a.startswith(("src", "on", "style")) or "//" in a]
    assert not re.search(r"url\(|@import|https?:", seen.html)
    assert "default-src &#39;none&#39;" in seen.html or "default-src 'none'" in seen.html


def test_a_tag_that_was_not_escaped_would_be_noticed(seen: Explanation) -> None:
    """The control for the test above."""
    tags = Read(seen.html.replace("</body>", f"{EVIL}</body>")).tags
    assert tags["script"] == tags["img"] == 1


def test_the_page_is_written_as_utf_8_whatever_is_in_it(seen: Explanation, tmp_path: Path) -> None:
    file = seen.save(tmp_path / "page.html")
    assert file.read_text(encoding="utf-8") == seen.html
