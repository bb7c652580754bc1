"""How entries are laid out on the disk, and that no more is read than was asked for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from samkv_rag.store import ChunkKVStore, estimate_bytes
from samkv_rag.store.layout import KVLayout
from samkv_rag.types import BLOCK

from .samples import KEYS, file_of, files, make_chunk, names

A = KEYS[0]


def test_entries_are_ordinary_safetensors_files(folder: Path) -> None:
    chunk = make_chunk(dtype=torch.bfloat16)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk, namespace="ns", fingerprint="fp")
    assert files(folder) == names(A)
    assert torch.equal(load_file(file_of(folder, A, "kv"))["kv"], chunk.kv)
    with safe_open(file_of(folder, A, "summary"), "pt") as summary:
        assert torch.equal(summary.get_tensor("mean"), chunk.summary.mean)
        facts = summary.metadata()
    assert facts["key"] == A and facts["namespace"] == "ns" and facts["fingerprint"] == "fp" and facts["version"] == "2"


def test_one_block_of_one_layer_is_contiguous(folder: Path) -> None:
    chunk = make_chunk(n_tokens=100)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk)
    raw = file_of(folder, A, "kv").read_bytes()
    start = len(raw) - chunk.nbytes
    size = chunk.nbytes // (3 * 7)
    at = start + (2 * 7 + 4) * size
    assert raw[at : at + size] == chunk.kv[2, 4].numpy().tobytes()


def test_layers_come_in_the_order_asked(store: ChunkKVStore) -> None:
    chunk = make_chunk(n_tokens=100, layers=5)
    store.put(A, chunk)
    for layers in ([], [0], [4], [1, 2, 3], [3, 0], [2, 2], range(5)):
        assert torch.equal(store.read_blocks(A, None, layers), chunk.kv[list(layers)]), layers
        assert torch.equal(store.read_blocks(A, [5, 1], layers), chunk.kv[list(layers)][:, [5, 1]]), layers
    assert store.read_blocks(A, [2], [1]).is_contiguous()


def test_the_system_is_asked_for_those_bytes_only(folder: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not count the bytes a process reads")
    chunk = make_chunk(n_tokens=512, width=64, heads=4)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk)
        store.summary(A)
        before = _read_by_process()
        store.read_blocks(A, [3, 4, 9])
        read = _read_by_process() - before
        store.summary(A)
        again = _read_by_process() - before - read
        before = _read_by_process()
        store.read_blocks(A, [3, 4, 9], layers=[1])
        one_layer = _read_by_process() - before
    wanted = chunk.nbytes * 3 // 32
    assert wanted <= read < wanted + 2048
    assert wanted // 3 <= one_layer < wanted // 3 + 2048
    assert again < 2048


def test_the_summary_is_small(folder: Path) -> None:
    chunk = make_chunk(n_tokens=512, width=64, heads=4)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk)
        before = _read_by_process()
        store.summary(A)
        assert store.bytes_read == 0 and _read_by_process() - before < chunk.nbytes * 0.12


@given(st.integers(1, 4), st.integers(1, 9), st.data())
def test_reads_cover_the_blocks_in_few_pieces(layers: int, n_blocks: int, data: st.DataObject) -> None:
    layout = KVLayout(torch.float16, (layers, n_blocks, 2, 1, BLOCK, 2))
    blocks = data.draw(st.lists(st.integers(0, n_blocks - 1), max_size=12))
    deep = data.draw(st.lists(st.integers(0, layers - 1), max_size=4))
    pieces = list(layout.reads(blocks, deep))
    size = layout.block_bytes
    covered = [at for offset, length in pieces for at in range(offset, offset + length, size)]
    assert covered == [(layer * n_blocks + block) * size for layer in deep for block in blocks]
    assert all(start + length != later for (start, length), (later, _) in zip(pieces, pieces[1:], strict=False))
    assert list(layout.reads(range(n_blocks), range(layers))) == [(0, layout.nbytes)]


@settings(max_examples=12, deadline=None)
@given(
    n_tokens=st.integers(1, 300),
    layers=st.integers(1, 6),
    heads=st.integers(1, 4),
    width=st.sampled_from([8, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_estimate_is_a_little_high(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, layers: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    with ChunkKVStore(tmp_path_factory.mktemp("kv") / "s") as store:
        text = "four" * n_tokens
        store.put(A, make_chunk(1, n_tokens, layers, heads, width, dtype, text))
        actual = store.stats().bytes
    estimate = estimate_bytes(n_tokens, layers, heads, width, dtype, heads=2 * heads)
    assert actual <= estimate <= actual * 1.02 + 2048 + 2 * n_tokens


def test_the_estimate_of_a_large_model() -> None:
    gib = estimate_bytes(1_000_000, 32, 8, 128, torch.bfloat16, chunks=7813, heads=32) / 2**30
    assert 122 * 1.1 < gib < 122 * 1.2
    assert estimate_bytes(0, 32, 8, 128, torch.bfloat16) == 0
    assert estimate_bytes(10, 1, 1, 8, torch.float32, chunks=99) == estimate_bytes(
        10, 1, 1, 8, torch.float32, chunks=10
    )
    padded = estimate_bytes(128, 2, 2, 8, torch.float32, chunks=128) - 128 * 14
    assert padded > 128 * math.prod((2, 2, 2, BLOCK, 8)) * 4


def _read_by_process() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
