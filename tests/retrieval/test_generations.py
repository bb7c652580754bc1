"""An index that cannot be written, or read, says what to do and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import pytest

from samkv_rag.retrieval import ChunkIndex, RetrievalError, ingest_folder
from tests.retrieval.conftest import BREAD
from tests.retrieval.fakes import FakeEngine
from tests.retrieval.test_folder import texts

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "error", "remedy"),
    [
        (
            faiss,
            "write_index",
            RuntimeError("Error: write error in vectors: No space left on device"),
            "free some space",
        ),
        (os, "fsync", FULL, "free some space"),
        (os, "replace", FULL, "free some space"),
        (os, "rename", PermissionError(errno.EACCES, "Permission denied"), "check the permissions of that folder"),
        (os, "rename", KeyboardInterrupt(), ""),
    ],
)
def test_an_index_that_cannot_be_written_stays_as_it_was(
    engine: FakeEngine, folder: Path, root: Path, owner: Any, name: str, error: BaseException, remedy: str
) -> None:  # fmt: skip
    ingest_folder(engine, folder, root)
    (folder / "new.txt").write_text("A new mill.")

    def fail(*_: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(RetrievalError if remedy else KeyboardInterrupt) as raised:
            ingest_folder(engine, folder, root)
    if remedy:
        said = str(raised.value)
        assert said.startswith(f"The index in {root} cannot be written (")
        assert said.endswith(f"): {remedy} and run the same command.")
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["gen-1"]
    assert BREAD in texts(root) and "A new mill." not in texts(root)
    assert ingest_folder(engine, folder, root).total_chunks == 4


FILES = ["manifest.json", "docstore.json", "index_store.json", "vectors.faiss", "id_map.json"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize(
    ("name", "harm", "digests"),
    [
        *[(name, cut, False) for name in FILES],
        *[(name, None, False) for name in FILES],
        *[(name, flip, True) for name in FILES],
        ("id_map.json", lambda _: b"[]", False),
        ("CURRENT", lambda _: b"\xff\xfe", True),
        ("CURRENT", lambda _: b"", True),
    ],
)
def test_a_damaged_index_says_what_to_do(
    engine: FakeEngine, folder: Path, root: Path, name: str, harm: Callable[[bytes], bytes] | None, digests: bool
) -> None:  # fmt: skip
    ingest_folder(engine, folder, root)
    if not digests:
        (root / "gen-1" / "digests.json").unlink()
    (file,) = root.rglob(name)
    if harm is None:
        file.unlink()
    else:
        file.write_bytes(harm(file.read_bytes()))
    for attempt in (lambda: ChunkIndex.open(root), lambda: ingest_folder(engine, folder, root)):
        with pytest.raises(RetrievalError, match="is damaged: remove that folder and ingest again"):
            attempt()


def test_an_index_without_digests_is_read(engine: FakeEngine, folder: Path, root: Path) -> None:
    """As earlier versions have written it."""
    ingest_folder(engine, folder, root)
    (root / "gen-1" / "digests.json").unlink()
    assert BREAD in texts(root)
