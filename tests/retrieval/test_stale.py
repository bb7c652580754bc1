"""What no longer holds the text that was ingested from it is answered from no more, and nothing else is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from samkv_rag.retrieval import ingest_folder
from samkv_rag.retrieval.folder import KEPT, LINKED
from tests.retrieval.conftest import BREAD
from tests.retrieval.fakes import FakeEngine, key_of
from tests.retrieval.test_folder import texts


@pytest.mark.parametrize("to", ["elsewhere", "docs"])
def test_a_link_in_place_of_a_folder_is_told_and_what_was_there_leaves(
    engine: FakeEngine, folder: Path, root: Path, to: str
) -> None:
    ingest_folder(engine, folder, root)
    shutil.move(folder / "more", folder.parent / "elsewhere")
    (folder / "more").symlink_to(folder.parent / to)
    report = ingest_folder(engine, folder, root)
    assert report.failed == {str(folder / "more"): LINKED}
    assert report.removed == [str(folder / "more" / "bread.txt")]
    assert BREAD not in texts(root) and key_of(BREAD) not in engine.store


def test_a_folder_in_place_of_a_file_is_not_that_file(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    (folder / "more" / "bread.txt").unlink()
    (folder / "more" / "bread.txt").mkdir()
    (folder / "more" / "bread.txt" / "new.txt").write_text("The mill burns.")
    report = ingest_folder(engine, folder, root)
    assert [Path(name).name for name in report.removed] == ["bread.txt"]
    assert BREAD not in texts(root) and "The mill burns." in texts(root)


def test_a_hidden_file_that_was_ingested_by_its_name_stays(engine: FakeEngine, folder: Path, root: Path) -> None:
    (folder / ".notes").mkdir()
    (folder / ".notes" / "a.txt").write_text("The bell is cracked.")
    ingest_folder(engine, folder / ".notes" / "a.txt", root)
    assert ingest_folder(engine, folder, root).removed == [] and "The bell is cracked." in texts(root)
    (folder / ".notes" / "a.txt").unlink()
    assert len(ingest_folder(engine, folder, root).removed) == 1


def test_a_file_that_was_emptied_loses_its_text(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    bread = folder / "more" / "bread.txt"
    bread.write_text("\n")
    report = ingest_folder(engine, folder, root)
    assert report.failed == {str(bread): "no text in it"} and report.removed == [str(bread)]
    assert BREAD not in texts(root) and key_of(BREAD) not in engine.store
    report = ingest_folder(engine, folder, root)
    assert report.failed == {str(bread): "no text in it"} and report.removed == []


def test_it_is_told_where_an_unreadable_file_is_still_answered_from(
    engine: FakeEngine, folder: Path, root: Path
) -> None:  # fmt: skip
    ingest_folder(engine, folder, root)
    for name in ("bread.txt", "new.txt"):
        (folder / "more" / name).write_bytes(b"\xff\xff")
    (folder / "alma.md").unlink()
    (folder / "alma.md").symlink_to(folder / "nowhere")
    failed = {Path(name).name: reason for name, reason in ingest_folder(engine, folder, root).failed.items()}
    assert {name: reason.endswith(KEPT) for name, reason in failed.items()} == {
        "bread.txt": True,
        "new.txt": False,
        "alma.md": False,
    }
    anew = ingest_folder(engine, folder, root, chunk_size=64)
    assert not any(reason.endswith(KEPT) for reason in anew.failed.values())
