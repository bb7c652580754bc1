"""`samkv-rag explain` from the command line, with the bundled reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from samkv_rag.cli.app import app
from tests.explain.test_page import Read

QUESTION = "Where is Alma Works based?"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "docs").mkdir()
    (folder / "docs" / "a.md").write_text("# Alma Works\n\nAlma Works is based in Tyrsa. " * 8)
    (folder / "docs" / "b.txt").write_text("Korda Mills has its seat in Orrin. <script>alert(1)</script> " * 8)
    done = CliRunner().invoke(app, ["ingest", str(folder / "docs"), "--store", str(folder / "store")])
    assert done.exit_code == 0, done.output
    return folder / "store"


def test_it_writes_the_page_and_says_what_was_answered(store: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    methods = ("--methods", "samkv:keep=0.3,rest=drop,epic")
    args = ["explain", QUESTION, "--store", str(store), "--out", str(page), *methods]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["samkv:keep=0.3,rest=drop", "epic"]
    assert str(page) in done.stderr.replace("\n", "")
    read = Read(page.read_text())
    assert {part["method"] for part in read.parts} == {"samkv:keep=0.3,rest=drop", "epic"}
    assert read.tokens("samkv:keep=0.3,rest=drop", "dropped") > 0
    assert read.tokens("epic", "dropped") == 0
    assert "script" not in read.tags


@pytest.mark.parametrize(
    ("args", "remedy"),
    [
        ([" "], "write it in quotes"),
        ([QUESTION, "--methods", "samkv:wings=2"], "no option 'wings'"),
        ([QUESTION, "--out", "nowhere/page.html"], "a folder that exists"),
        ([QUESTION, "--model", "another"], "ingest again"),
    ],
)
def test_errors_are_told_in_a_sentence(store: Path, args: list[str], remedy: str) -> None:
    done = CliRunner().invoke(app, ["explain", *args, "--store", str(store)])
    assert done.exit_code == 1
    assert remedy in done.stderr.replace("\n", " ")
