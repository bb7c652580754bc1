"""What the readers make of Markdown, HTML, text and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bs4 import Tag
from llama_index.core.node_parser import SentenceSplitter

from samkv_rag.retrieval.errors import RetrievalError, UnreadableFile
from samkv_rag.retrieval.loading import find_files, fingerprint, load, split
from samkv_rag.retrieval.readers import unwrap
from tests.retrieval.fakes import tokenizer

LINE = "This line of prose was wrapped by an editor at"


def read(path: Path) -> list[str]:
    return [document.text for document in load(fingerprint(path))]


def pdf(text: str, meaning: dict[str, str] | None = None) -> bytes:
    """The smallest PDF that shows a line of text; `meaning`: the UTF-16 units that its font gives to characters."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    pairs = "".join(f"<{ord(letter):02x}> <{units}>\n" for letter, units in (meaning or {}).items())
    space = "1 begincodespacerange\n<00> <ff>\nendcodespacerange\n"
    cmap = f"begincmap\n{space}{len(meaning or {})} beginbfchar\n{pairs}endbfchar\nendcmap\n".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica " + (b"/ToUnicode 6 0 R >>" if meaning else b">>"),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(cmap), cmap),
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        out
        + b"xref\n0 7\n0000000000 65535 f \n"
        + rows
        + b"trailer << /Size 7 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(out)
    )


def test_markdown_gives_sections_of_plain_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    prose = f"{LINE}\nseventy *signs*, see [this](http://x).\n\nNext `code`."
    path.write_text(f"# One\n\n## Two\n\n{prose}\n\n```\nx  =  1\n```\n")
    (document,) = load(fingerprint(path))
    assert document.text == f"Two\n{LINE} seventy signs, see this.\n\nNext code.\n\nx  =  1"
    assert document.metadata["section"] == "One Two"


def test_sibling_sections_do_not_inherit_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("Before.\n\n# A\n\na\n\n## B\n\nb\n\n## C\n\nc\n\n# D\n\nd\n")
    assert [d.metadata["section"] for d in load(fingerprint(path))] == ["", "A", "A B", "A C", "D"]


def test_a_heading_that_the_first_paragraph_repeats_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("## The kettle\n\nThe Kettle sings.\n\n## Dogs\n\nThey dislike it.\n")
    assert read(path) == ["The Kettle sings.", "Dogs\nThey dislike it."]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# Phone 555\n\n## Code 99\n", [("Phone 555 Code 99", "Phone 555\nCode 99")]),
        ("# A\n\n## B\n\n## C\n\nx\n\n# D\n", [("A B", "A\nB"), ("A C", "C\nx"), ("D", "D")]),
        ("## B\n\n## B\n\nThat is b.\n\n### E\n\n# F\n", [("B", "B"), ("B", "That is b."), ("B E", "E"), ("F", "F")]),
        ("# A\n\n## B\n\nThat is b.\n", [("A B", "That is b.")]),
    ],
)
def test_a_heading_without_text_is_text(tmp_path: Path, source: str, expected: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.md"
    path.write_text(source)
    assert [(d.metadata["section"], d.text) for d in load(fingerprint(path))] == expected


FRONT = "---\ntitle: A  guide\ntags: [x, y]\n\nmore:\n  - z\n# a note\n---\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"{FRONT}\nSome text.\n", ["A guide\nSome text."]),
        (f"{FRONT}\n# The guide\n\nSome text.\n", ["The guide\nSome text."]),
        ("---\ntags: x\n...\nSome text.\n", ["Some text."]),
        ("---\r\ntitle: A\r\n---\r\nSome text.\r\n", ["A\nSome text."]),
        (FRONT, ["A guide"]),
        ("---\nno front matter\n\n---\n\nSome text.\n", ["no front matter\n\nSome text."]),
        ("---\n- a list\n- of two\n\n---\nSome text.\n", ["a list\n\nof two\n\nSome text."]),
        ("---\n# Of today\n\ndate: 2024-99-99\n---\nSome text.\n", ["Some text."]),
        ("---\ntitle: C#: part 1\nauthor: @x\n---\nSome text.\n", ["C#: part 1\nSome text."]),
        ("---\ntitle: '007: a, b' # old\ndate created: 2024\n---\n## Two\n\nx\n", ["Two\nx"]),
        ('---\n"title": A\ntags: [a,\nb]\n---\nSome text.\n', ["A\nSome text."]),
        ("---\ntitle: ~\nbase: &x [a]\nmore: [*x, *x]\n---\nSome text.\n", ["Some text."]),
        ("---\nTitle: [a, b]\n---\nSome text.\n", ["Some text."]),
        ("---\nTitle: A\n---\nSome text.\n", ["A\nSome text."]),
        ("---\n\n## Hours\n\n- Mon 9-17\n\n---\n", ["Hours\nMon 9-17"]),
        ("---\n# Refunds\n---\nAfter 14 days.\n", ["Refunds\nAfter 14 days."]),
        ("---\n\n    code\n\n---\nSome text.\n", ["code\n\nSome text."]),
        (
            "---\nThe plan: to go on\nwith: [ all of it\nor not.\n---\n",
            ["The plan: to go on with: [ all of it or not."],
        ),
        ("---\ntitle: >\n  Folded\n---\n```\n# no heading\n```\n", ["Folded\n# no heading"]),
    ],
)
def test_front_matter_is_no_text_except_for_the_title(tmp_path: Path, source: str, expected: list[str]) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(source.encode())
    assert read(path) == expected


def test_a_stated_title_is_the_outermost_heading(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"{FRONT}\nBefore.\n\n# One\n\na\n\n# Two\n\n## Three\n\nb\n")
    sections = [d.metadata["section"] for d in load(fingerprint(path))]
    assert sections == ["A guide", "A guide One", "A guide Two Three"]


def test_deeply_nested_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("".join(f"{'  ' * depth}- level {depth}\n" for depth in range(40)))
    (text,) = read(path)
    assert all(f"level {depth}" in text.split("\n\n") for depth in range(40))


def test_html_keeps_paragraphs_apart_and_words_together(tmp_path: Path) -> None:
    path = tmp_path / "a.HTML"
    body = "<div><p>One <b>bo</b>ld.</p><p>Two.</p></div><ul><li>a<li>b</ul>"
    path.write_text(f"<title>T</title><script>no()</script>{body}")
    assert read(path) == ["T\n\nOne bold.\n\nTwo.\n\na\n\nb"]


def test_a_page_that_is_xml_too_is_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.html"
    path.write_text('\n<?xml version="1.0" encoding="UTF-8"?>\n\n<article><p>One.</p></article>')
    assert read(path) == ["One."] and not recwarn.list


def test_blanks_in_a_page_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(f"<p>One.{' ' * 1_000_000}<?xml x?>Two.</p>")
    assert read(path)[0].startswith("One.")


def test_html_is_read_without_a_search_among_siblings_for_each_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    path = tmp_path / "a.html"
    path.write_text("<ul><li>a<br>b<hr>c<ul><li>d</ul>e<p>f</ul>g<h1>h</h1><pre>i\n\nj<br/></pre>k")
    searched: list[Tag] = []
    monkeypatch.setattr(Tag, "index", lambda self, child: searched.append(self))
    assert read(path) == ["a b\n\nc\n\nd\n\ne\n\nf\n\ng\n\nh\n\ni\n\nj\n\nk"]
    assert searched == []


def test_pdf_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("Alma Works is based in Tyrsa."))
    assert read(path) == ["Alma Works is based in Tyrsa."]


def test_halves_of_surrogate_pairs_in_a_pdf_cost_one_character_at_most(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("Alma x Works yz", {"x": "d83d", "y": "d83d", "z": "de00"}))
    source = fingerprint(path)
    assert [document.text for document in load(source)] == ["Alma \ufffd Works \U0001f600"]
    assert len(split(source, load(source), lambda text: list(text.encode()), 64)) == 1


def test_wrapped_prose_is_joined_and_verse_is_not() -> None:
    assert unwrap(f"{LINE}\nseventy signs.\r\n\r\nshort\nlines\nstay") == f"{LINE} seventy signs.\n\nshort\nlines\nstay"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xfa broken", "not text in UTF-8; save it as such"),
        ("c.txt", b"\xff\xfe\xfa", "not the UTF-16 that its first bytes say"),
        ("c.md", "# Caf\xe9 one".encode("utf-16-le"), "or UTF-16 without a mark; convert that"),
        ("c.html", "one".encode("utf-16-be"), "or UTF-16 without a mark; convert that"),
        ("d.txt", "\ufeffa\0b".encode("utf-16-le"), "not text"),
        ("b.md", "caf\xe9".encode("latin1"), "not text in UTF-8; save it as such"),
        ("a.md", b" \n\n", "no text in it"),
        ("a.pdf", b"%PDF-1.4 nothing", "Stream|EOF"),
    ],
)
def test_an_unreadable_file_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=reason):
        load(fingerprint(path))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_text_with_a_mark_is_read_in_its_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(("\ufeff" * ("16" in encoding) + "A caf\xe9 in Tyrsa.").encode(encoding))
    assert read(path) == ["A caf\xe9 in Tyrsa."]


def test_hidden_and_foreign_files_are_left_out_but_a_hidden_parent_is_not(tmp_path: Path) -> None:
    docs = tmp_path / ".venv" / "docs"
    (docs / ".git").mkdir(parents=True)
    for name in ("b.md", "a.TXT", ".c.md", "d.docx", ".git/e.md"):
        (docs / name).write_text("text")
    assert [path.name for path in find_files(docs)] == ["a.TXT", "b.md"]


@pytest.mark.parametrize(("name", "remedy"), [("missing", "check the path"), ("a.docx", "convert it")])
def test_a_wrong_path_names_the_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / "a.docx").write_text("text")
    with pytest.raises(RetrievalError, match=remedy):
        find_files(tmp_path / name)


def test_chunks_are_whole_sentences_within_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    sentences = [f"Sentence number {n} says that the kettle is {n} years old." for n in range(40)]
    path.write_text(" ".join(sentences))
    source = fingerprint(path)
    chunks = [n.get_content() for n in split(source, load(source), lambda t: tokenizer(t)["input_ids"], 64)]
    assert " ".join(chunks) == " ".join(sentences)
    assert all(chunk.endswith(".") and len(tokenizer(chunk)["input_ids"]) <= 64 for chunk in chunks)


def test_what_takes_too_long_to_cut_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: Any) -> None:
        raise TimeoutError("regular-expression match exceeded its 5.0s time limit")

    path = tmp_path / "a.txt"
    path.write_text("One.")
    monkeypatch.setattr(SentenceSplitter, "get_nodes_from_documents", too_long)
    source = fingerprint(path)
    with pytest.raises(UnreadableFile, match="put blank lines between its paragraphs"):
        split(source, load(source), lambda text: [0], 64)


def test_headings_do_not_shorten_the_chunks(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"# {'Long heading ' * 9}\n\n{'Words that fill a chunk well. ' * 4}\n")
    source = fingerprint(path)
    size = len(tokenizer(load(source)[0].text)["input_ids"])
    assert len(split(source, load(source), lambda t: tokenizer(t)["input_ids"], size)) == 1


def test_importing_the_readers_leaves_the_logging_alone() -> None:
    import subprocess
    import sys

    code = "import logging, samkv_rag.retrieval.folder; print(logging.root.level, logging.root.handlers)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "30 []"


def test_html_in_markdown_keeps_its_text(tmp_path: Path) -> None:
    source = (
        "# FAQ\n\n<details>\n<summary>What is the password?</summary>\nIt is Zorro.\n</details>\n\nOther text.\n\n"
        "<table><tr><td>Kiln</td><td>500 euros</td></tr></table>\n\n<!-- a comment -->\n\none<br>two <b>three</b>\n"
    )
    (tmp_path / "a.md").write_text(source)
    text = "\n".join(document.text for document in load(fingerprint(tmp_path / "a.md")))
    for said in ("What is the password?", "It is Zorro.", "Other text.", "Kiln", "500 euros", "one two three"):
        assert said in text
    assert "comment" not in text and "<" not in text
