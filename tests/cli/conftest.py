"""The command line over an engine without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from samkv_rag.cli.app import app
from samkv_rag.demo import questions
from tests.retrieval.fakes import FakeEngine


class Terminal:
    """Runs commands in `tmp_path`; all of them share one engine for each store."""

    def __init__(self) -> None:
        self.runner = CliRunner()
        self.engines: dict[str, FakeEngine] = {}
        self.kv_dtypes: list[str] = []
        self.floors: list[int] = []
        self.answers = {question.question: question.expected for question in questions()}

    def open_engine(self, model: str, store: Path, kv_dtype: str = "model", min_kept_tokens: int = 0) -> FakeEngine:
        self.kv_dtypes.append(kv_dtype)
        self.floors.append(min_kept_tokens)
        engine = FakeEngine(store / "fake", answers=self.answers)
        return self.engines.setdefault(str(store.absolute()), engine)

    @property
    def engine(self) -> FakeEngine:
        """The engine that was opened last."""
        return list(self.engines.values())[-1]

    def __call__(self, *args: str, code: int = 0) -> tuple[str, str]:
        """stdout and stderr of `samkv-rag ARGS`, which must exit with `code`."""
        result = self.runner.invoke(app, list(args))
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout, result.stderr


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in an empty folder."""
    from samkv_rag.cli import ask, check, demo, ingest

    monkeypatch.chdir(tmp_path)
    terminal = Terminal()
    for module in (ask, check, demo, ingest):  # not where it is defined: modules imported meanwhile would keep it
        monkeypatch.setattr(module, "open_engine", terminal.open_engine)
    return terminal


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with two documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Alma Works\n\nAlma Works is based in Tyrsa.")
    (folder / "b.txt").write_text("Korda Mills has its seat in Orrin.")
    return folder
