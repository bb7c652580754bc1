"""Where the keys and values of a store in memory are."""

from __future__ import annotations

from pathlib import Path

import pytest

from samkv_rag.store import ChunkKVStore, StoreError


def test_a_device_that_cannot_be_used_is_refused_when_the_store_is_opened(tmp_path: Path) -> None:
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(StoreError, match=device):
            ChunkKVStore(device=device)
    with pytest.raises(ValueError, match="in memory"):
        ChunkKVStore(tmp_path / "store", device="cuda")
    assert not (tmp_path / "store").exists()
