"""Ingestion is idempotent by content, and only what changed is computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.storage.index_store import SimpleIndexStore

from samkv_rag.errors import SamKVError
from samkv_rag.retrieval import ChunkIndex, IngestPlan, RetrievalError, ingest_folder
from tests.retrieval.conftest import BREAD, MOVED
from tests.retrieval.fakes import FakeEngine, key_of


def texts(root: Path) -> set[str]:
    index = ChunkIndex.open(root)
    return {passage.text for passage in index.retrieve("What?", top_k=100)}


def test_the_second_run_costs_nothing(engine: FakeEngine, folder: Path, root: Path) -> None:
    first = ingest_folder(engine, folder, root)
    assert (len(first.added), first.chunks, first.total_chunks) == (2, 3, 3)
    computed, tokenized, generation = len(engine.precomputed), engine.tokenized, (root / "CURRENT").read_text()
    second = ingest_folder(engine, folder, root)
    assert (len(second.unchanged), second.chunks, second.total_chunks) == (2, 0, 3)
    assert (len(engine.precomputed), engine.tokenized) == (computed, tokenized)
    assert (root / "CURRENT").read_text() == generation


def test_a_changed_file_replaces_its_chunks(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    (folder / "more" / "bread.txt").write_text("Korda Mills has closed.")
    report = ingest_folder(engine, folder, root)
    assert [Path(p).name for p in report.changed] == ["bread.txt"]
    assert engine.precomputed[-1] == "Korda Mills has closed." and len(engine.precomputed) == 4
    assert "Korda Mills has closed." in texts(root) and BREAD not in texts(root)
    assert key_of(BREAD) not in engine.store


def test_a_deleted_file_leaves(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    (folder / "alma.md").unlink()
    report = ingest_folder(engine, folder, root)
    assert [Path(p).name for p in report.removed] == ["alma.md"]
    assert texts(root) == {BREAD}
    assert len(engine.store) == 1


def test_other_folders_stay(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder / "more", root)
    ingest_folder(engine, folder / "alma.md", root)
    assert len(texts(root)) == 3
    ingest_folder(engine, folder / "more", root)
    assert len(texts(root)) == 3


def test_a_linked_file_has_its_own_name_however_it_is_named(engine: FakeEngine, folder: Path, root: Path) -> None:
    (folder.parent / "kept.bin").write_text("# The mill burns.")
    (folder / "mill.md").symlink_to(folder.parent / "kept.bin")
    (folder.parent / "linked").symlink_to(folder)
    report = ingest_folder(engine, folder.parent / "linked" / "mill.md", root)
    assert report.added == [str(folder / "mill.md")] and texts(root) == {"The mill burns."}
    assert ingest_folder(engine, folder, root).unchanged == [str(folder / "mill.md")]
    (folder / "mill.md").unlink()
    assert ingest_folder(engine, folder, root).removed == [str(folder / "mill.md")]


def test_a_text_that_stands_in_two_files_is_forgotten_with_the_last(
    engine: FakeEngine, folder: Path, root: Path
) -> None:
    (folder / "copy.txt").write_text(BREAD)
    report = ingest_folder(engine, folder, root)
    assert report.total_chunks == 4 and len(engine.store) == 3
    (folder / "copy.txt").unlink()
    ingest_folder(engine, folder, root)
    assert key_of(BREAD) in engine.store
    (folder / "more" / "bread.txt").unlink()
    ingest_folder(engine, folder, root)
    assert key_of(BREAD) not in engine.store


def test_unreadable_files_are_told_and_the_rest_is_ingested(engine: FakeEngine, folder: Path, root: Path) -> None:
    (folder / "bad.pdf").write_bytes(b"no pdf")
    (folder / "dangling.txt").symlink_to(folder / "nowhere")
    report = ingest_folder(engine, folder, root)
    assert {Path(path).name for path in report.failed} == {"bad.pdf", "dangling.txt"}
    assert all(report.failed.values()) and report.total_chunks == 3


def test_a_file_that_became_unreadable_keeps_its_chunks(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    (folder / "more" / "bread.txt").write_bytes(b"\xff\xff")
    report = ingest_folder(engine, folder, root)
    assert len(report.failed) == 1 and not report.changed and BREAD in texts(root)


def test_entries_that_the_store_lost_are_computed_again(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    engine.store.delete([key_of(BREAD)])
    ingest_folder(engine, folder, root)
    assert engine.precomputed.count(BREAD) == 2 and key_of(BREAD) in engine.store


@pytest.mark.parametrize("change", [{"chunk_size": 64}, {"model": "other"}, {"fingerprint": "other"}])
def test_other_settings_ingest_everything_anew(
    engine: FakeEngine, folder: Path, root: Path, change: dict[str, object]
) -> None:
    ingest_folder(engine, folder, root)
    engine.fingerprint = str(change.pop("fingerprint", "fake"))
    report = ingest_folder(engine, folder / "more", root, **change)  # type: ignore[arg-type]
    assert len(report.changed) == 2 and not report.unchanged
    assert len(ChunkIndex.open(root).documents) == 2


def test_a_missing_embedding_package_is_told_before_anything_is_computed(
    engine: FakeEngine, folder: Path, root: Path
) -> None:  # fmt: skip
    ingest_folder(engine, folder, root)
    (folder / "new.txt").write_text("A new mill.")
    with pytest.raises(RetrievalError, match="pip install llama-index-embeddings-huggingface"):
        ingest_folder(engine, folder, root, embed="some/model")
    assert len(engine.precomputed) == 3


def test_the_plan_comes_first_and_the_progress_adds_up(engine: FakeEngine, folder: Path, root: Path) -> None:
    plans: list[IngestPlan] = []
    steps: list[tuple[int, int]] = []
    (folder / "long.txt").write_text("\n\n".join(f"{BREAD} Copy {n}." for n in range(40)))
    ingest_folder(engine, folder, root, on_plan=plans.append, on_progress=lambda c, t: steps.append((c, t)))
    (plan,) = plans
    assert replace(plan, kv_bytes=0) == IngestPlan(3, sum(c for c, _ in steps), sum(t for _, t in steps), 0)
    assert plan.kv_bytes == plan.tokens * 1024 and len(steps) > 1


def test_a_text_that_comes_up_twice_is_planned_once(engine: FakeEngine, folder: Path, root: Path) -> None:
    plans: list[IngestPlan] = []
    ingest_folder(engine, folder, root, on_plan=plans.append)
    for copy in ("copy.txt", "again.txt"):
        (folder / copy).write_text("A new mill.")
    ingest_folder(engine, folder, root, on_plan=plans.append)
    assert (plans[1].files, plans[1].chunks, plans[1].tokens) == (2, 2, 4) and plans[1].kv_bytes == 4 * 1024


def test_numbers_of_vectors_survive_deletions(engine: FakeEngine, folder: Path, root: Path) -> None:
    """By itself, FaissMapVectorStore gives a new vector the number of an old one after a deletion."""
    for turn in range(4):
        (folder / "more" / "bread.txt").write_text(f"Bread of turn {turn}.")
        (folder / f"extra{turn}.txt").write_text(f"Extra {turn}: {MOVED}")
        ingest_folder(engine, folder, root)
    assert len(texts(root)) == 3 + 4
    found = ChunkIndex.open(root).retrieve("Extra 2", top_k=1)
    assert any(passage.text.startswith("Extra 2") for passage in found)


def test_the_list_of_all_chunks_is_not_written_out_for_each_file(
    engine: FakeEngine, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    add = SimpleIndexStore.add_index_struct

    def count(self: SimpleIndexStore, chunks: Any) -> None:
        written.append(chunks)
        add(self, chunks)

    monkeypatch.setattr(SimpleIndexStore, "add_index_struct", count)
    for turn in range(2):
        for number in range(20):
            (folder / f"{number}.txt").write_text(f"Kite {number} of turn {turn}.")
        ingest_folder(engine, folder, root)
    assert len(written) <= 6 and len(texts(root)) == 3 + 20


def test_old_generations_are_swept_and_the_texts_of_deleted_files_with_them(
    engine: FakeEngine, folder: Path, root: Path
) -> None:
    for turn in range(4):
        (folder / "turn.txt").write_text(f"Turn {turn}.")
        ingest_folder(engine, folder, root)
    assert sorted(os.listdir(root)) == ["CURRENT", "gen-4", "lock"]
    (folder / "turn.txt").unlink()
    ingest_folder(engine, folder, root)
    assert not [path for path in root.rglob("*") if path.is_file() and b"Turn 3" in path.read_bytes()]


def test_what_cannot_be_read_is_listed_and_harms_nothing_else(engine: FakeEngine, folder: Path, root: Path) -> None:
    """A name that is no text, and a pipe, which would be read for ever."""
    os.close(os.open(os.fsencode(folder) + b"/caf\xe9.txt", os.O_CREAT | os.O_WRONLY))
    os.mkfifo(folder / "pipe.txt")
    report = ingest_folder(engine, folder, root)
    reasons = {Path(name).name: reason for name, reason in report.failed.items()}
    assert reasons == {"caf?.txt": "its name is not UTF-8; rename it", "pipe.txt": "not a file but a pipe or a device"}
    assert len(report.added) == 2 and BREAD in texts(root)


def test_a_folder_that_cannot_be_read_loses_nothing(
    engine: FakeEngine, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    ingest_folder(engine, folder, root)
    walk, stat = os.walk, Path.stat
    refusal = PermissionError(13, "Permission denied", str(folder / "more"))

    def refused(top: Path, **how: Any) -> Iterator[Any]:
        for place, folders, names in walk(top, **how):
            if "more" in folders:
                folders.remove("more")
                how["onerror"](refusal)
            yield place, folders, names

    def hidden(self: Path, **how: Any) -> os.stat_result:
        if "more" in self.parts:
            raise refusal
        return stat(self, **how)

    monkeypatch.setattr(os, "walk", refused)
    monkeypatch.setattr(Path, "stat", hidden)
    report = ingest_folder(engine, folder, root)
    assert report.failed == {str(folder / "more"): "Permission denied"} and report.removed == []
    assert BREAD in texts(root)


def test_a_question_is_one_and_so_are_chunks(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    index = ChunkIndex.open(root)
    for question, count in (("", 5), ("mill", 0)):
        with pytest.raises(RetrievalError, match="Ask a question, and for at least one chunk"):
            index.retrieve(question, count)
    with pytest.raises(SamKVError, match="half of a surrogate pair"):
        index.retrieve("caf\udce9")
