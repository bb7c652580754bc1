"""`samkv-rag store` on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from samkv_rag import ChunkKVStore
from samkv_rag.cli.app import app
from samkv_rag.cli.store import parse_size
from samkv_rag.types import BLOCK, ChunkKV, ChunkSummary
from tests.cli.conftest import Terminal


def chunk(seed: int) -> ChunkKV:
    rows = torch.full((1, 1, 1, 4), float(seed))
    summary = ChunkSummary(f"text {seed}", torch.tensor([1, 2, 3]), rows, rows, rows, torch.zeros(1, 1, 4))
    return ChunkKV(summary, torch.full((1, 1, 2, 1, BLOCK, 4), float(seed)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ".samkv"
    store = ChunkKVStore(str(path))
    for seed in range(3):
        store.put(f"key-{seed}", chunk(seed), namespace="default", fingerprint="f")
    store.close()
    return path


def damage(folder: Path) -> None:
    path = next(folder.rglob("key-1.kv.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


def test_stats(terminal: Terminal, folder: Path) -> None:
    shown = json.loads(terminal("store", "--json")[0])
    assert shown["entries"] == 3 and shown["bytes"] > 0 and "hit_rate" in shown
    assert shown["kv_dtypes"] == {"fp32": 3}
    table = terminal("store", "--store", str(folder))[0]
    assert "no look-ups yet" in table and "3 fp32" in table


def test_verify(terminal: Terminal, folder: Path) -> None:
    assert "sound" in terminal("store", "verify")[0]
    damage(folder)
    assert "key-1" in terminal("store", "verify", code=1)[0]
    assert json.loads(terminal("store", "verify", "--json", code=1)[0]) == {"damaged": ["key-1"]}


def test_prune_by_size_and_damage(terminal: Terminal, folder: Path) -> None:
    damage(folder)
    terminal("store", "verify", code=1)
    assert "Removed 1 damaged" in terminal("store", "prune")[0]
    assert json.loads(terminal("store", "prune", "--max-bytes", "0", "--json")[0])["evicted"] == 2
    assert json.loads(terminal("store", "--json")[0])["entries"] == 0


def test_the_index_beside_the_entries_survives_a_prune(terminal: Terminal, folder: Path) -> None:
    (folder / "index" / "gen-1").mkdir(parents=True)
    (folder / "index" / "gen-1" / "manifest.json").write_text("{}")
    terminal("store", "prune")
    assert (folder / "index" / "gen-1" / "manifest.json").exists()


@pytest.mark.parametrize("command", [[], ["verify"], ["prune"]])
def test_a_look_at_a_folder_that_is_no_store_leaves_it_as_it_is(
    terminal: Terminal, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "photos").mkdir()
    assert "There is no store in photos" in terminal("store", *command, "--store", "photos", code=1)[1]
    assert list((tmp_path / "photos").iterdir()) == []


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("1k", 1024), ("1.5 MB", 3 << 19), ("2GiB", 2 << 30)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("command", [["ingest", "."], ["ask", "Who?"], ["profile"]])
def test_a_store_that_is_a_file_is_told_in_a_sentence(tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "notes.md"
    file.write_text("One.")
    done = CliRunner().invoke(app, [*command, "--store", str(file)])
    assert done.exit_code == 1 and "is a file; --store takes a folder" in " ".join(done.stderr.split())
