from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore

Opener = Callable[..., ChunkKVStore]


@pytest.fixture(params=["memory", "disk"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens stores of one tier, which are closed at the end."""
    opened: list[ChunkKVStore] = []

    def opener(max_bytes: int | None = None) -> ChunkKVStore:
        path = ":memory:" if request.param == "memory" else tmp_path / f"store{len(opened)}"
        opened.append(ChunkKVStore(path, max_bytes))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opener) -> ChunkKVStore:
    return open_store()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"
