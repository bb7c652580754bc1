"""An engine over a store that may only be read: it answers, and computes nothing that could not be stored."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, StoreReadOnly
from tests.models import tiny_engine
from tests.store.test_permissions import as_nobody
from tests.store.test_reading import only_read, writable

CHUNKS = ["Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles."]
NEW = "Ana Petrov studied chemistry in Bergen before she moved to the coast, where she lives now."
ASKED = "Where is Lumen Labs based?"


@pytest.fixture
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp())
    with ChunkKVStore(root / "kv") as store:
        tiny_engine(store=store).precompute(CHUNKS)
    only_read(root)
    yield root / "kv"
    writable(root)
    shutil.rmtree(root)


def test_it_answers_and_stores_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_memory = tiny_engine()
    in_memory.precompute(CHUNKS)
    want = [in_memory.answer(ASKED, texts, max_new_tokens=4).token_ids for texts in (CHUNKS, [*CHUNKS, NEW])]

    def work() -> None:
        with ChunkKVStore(folder) as store, caplog.at_level(logging.INFO):
            engine = tiny_engine(store=store)
            engine.load()
            engine.adapter.ingest = None  # type: ignore[assignment]  # nothing is to be computed for the store
            known, new = (engine.answer(ASKED, texts, max_new_tokens=4) for texts in (CHUNKS, [*CHUNKS, NEW]))
            assert [known.token_ids, new.token_ids] == want
            assert known.report.misses == () and new.report.misses == (NEW[:60],)
            assert "was not stored: The store" in caplog.text
            with pytest.raises(StoreReadOnly):
                engine.precompute([*CHUNKS, NEW])
            assert len(engine.precompute(CHUNKS)) == 1, "which is there"

    assert as_nobody(work) == 0
