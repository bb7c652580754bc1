"""A tiny model in place of the measured ones, and a folder of its own for the rows."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import harness, rows
from samkv_rag.model.adapter import ModelAdapter
from tests import models

Row = dict[str, str]
Command = Callable[..., list[Row]]


@pytest.fixture
def tiny() -> ModelAdapter:
    return models.adapter("llama")


@pytest.fixture
def command(tiny: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a benchmark's `main` over the tiny model; returns the rows it wrote, none if it wrote no file."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(rows, "_git", lambda *arguments: "")

    def run(name: str, *arguments: str) -> list[Row]:
        module = importlib.import_module(f"benchmarks.{name}")
        for place in (harness, module):
            if hasattr(place, "model_named"):
                monkeypatch.setattr(place, "model_named", lambda label, device="cpu": tiny)
        monkeypatch.setattr("sys.argv", [name, *arguments])
        module.main()
        file = tmp_path / f"{name}.csv"
        if not file.exists():
            return []
        with file.open(newline="") as written:
            return list(csv.DictReader(written))

    return run
