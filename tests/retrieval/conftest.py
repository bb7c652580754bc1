"""A folder of documents and an engine that only counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.retrieval.fakes import FakeEngine

ALMA = (
    "Alma Works is a workshop for kites. It was set up on a windy hill by two sisters who could not agree on a color. "
    "Every kite that leaves the hall is tested for an hour and then signed. The first one is kept under a glass bell."
)
MOVED = (
    "The company then moved to Tyrsa. The hill had become too quiet for kites. On most days the flags hung down like "
    "washing. In the new place the wind comes from the sea and stays for lunch, and nobody has complained since then."
)
BREAD = (
    "Korda Mills grinds rye for eleven villages. The wheel is older than the road. It was mended in the winter of the "
    "long frost, and the carpenter was paid in loaves. His family still gets one every Friday, by an old promise."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two documents: one of two chunks, one of one."""
    docs = tmp_path / "docs"
    (docs / "more").mkdir(parents=True)
    (docs / "alma.md").write_text(f"# Kites\n\n{ALMA}\n\n{MOVED}\n")
    (docs / "more" / "bread.txt").write_text(f"{BREAD}\n")
    return docs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the index goes."""
    return tmp_path / "store" / "index"


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """An engine with an empty store."""
    return FakeEngine(tmp_path / "store" / "kv")
