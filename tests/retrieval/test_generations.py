"""An index that cannot be written, or read, says what to do and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import faiss
import pytest

from samkv_rag.retrieval import RetrievalError, ingest_folder
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
