"""Killed at any point while the index is persisted, or started twice: the next run has a whole index."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from samkv_rag.retrieval import ChunkIndex, RetrievalError, ingest_folder
from samkv_rag.retrieval.folder import BATCH
from tests.retrieval.children import start
from tests.retrieval.fakes import FakeEngine, key_of

# The six files and the folder of a generation, then its parent, are synced one after the other.
POINTS = [
    ("precompute", 1),
    ("write", 1),
    ("fsync", 1),
    ("fsync", 7),
    ("rename", 1),
    ("fsync", 8),
    ("replace", 1),
    ("release", 1),
    ("release", 2),
]


@pytest.mark.parametrize(("where", "number"), POINTS)
def test_a_killed_ingestion_leaves_the_old_index_or_the_new_one(
    engine: FakeEngine, folder: Path, root: Path, where: str, number: int
) -> None:
    ingest_folder(engine, folder, root)
    (folder / "more" / "bread.txt").write_text("Korda Mills has closed.")
    child = start(root.parent, folder, where, number)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert len(ChunkIndex.open(root).retrieve("Who grinds rye?", top_k=50)) == 3
    assert ingest_folder(engine, folder, root).total_chunks == 3
    found = {passage.text for passage in ChunkIndex.open(root).retrieve("Korda Mills", top_k=50)}
    assert "Korda Mills has closed." in found and len(found) == len(engine.store) == 3
    assert not [path for path in root.iterdir() if path.name.startswith(".unfinished") and path.is_dir()]


def test_killed_before_the_first_index_there_is_none_and_the_next_run_makes_it(
    engine: FakeEngine, folder: Path, root: Path
) -> None:
    child = start(root.parent, folder, "replace")
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(RetrievalError, match="samkv-rag ingest"):
        ChunkIndex.open(root)
    report = ingest_folder(engine, folder, root)
    assert (report.total_chunks, report.chunks, report.tokens) == (3, 3, 0)
    assert engine.precomputed == []  # the caches of the killed run are used


def test_caches_of_a_killed_run_that_no_file_needs_any_more_are_released(
    engine: FakeEngine, folder: Path, root: Path
) -> None:  # fmt: skip
    for number in range(BATCH):
        (folder / f"{number}.txt").write_text(f"Kite {number}.")
    child = start(root.parent, folder, "precompute", 2)
    child.join(120)
    assert len(engine.store) == BATCH
    (folder / "0.txt").unlink()
    assert ingest_folder(engine, folder, root).total_chunks == len(engine.store) == BATCH + 2
    assert key_of("Kite 0.") not in engine.store and engine.precomputed[0] != "Kite 1."


def test_two_processes_ingest_the_same_folder(folder: Path, root: Path) -> None:
    children = [start(root.parent, folder, "slowly") for _ in range(2)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    logs = sorted(path.read_text() for path in root.parent.glob("log-*"))
    assert logs == ["0 2 1", "2 0 0"]  # the second one waited, and found nothing left to do
    assert len(ChunkIndex.open(root).documents) == 2
