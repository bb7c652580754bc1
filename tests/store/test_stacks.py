"""Entries of models whose layers have caches of unlike shapes: every stack comes back as it was put, or not at all."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samkv_rag import Reuse, SamKV
from samkv_rag.ingest import stored_bytes
from samkv_rag.methods import Method
from samkv_rag.store import ChunkKVStore, DamagedEntry
from samkv_rag.types import KV_DTYPES, ChunkKV
from tests.models import adapter, tiny_engine
from tests.oracles import random_ids

from .samples import KEYS, file_of, flip, make_chunk, same

A, B = KEYS[:2]
UNLIKE = [{"layers": 3, "heads": 2, "width": 8}, {"layers": 2, "heads": 1, "width": 32}, {"layers": 1, "heads": 4}]


def make_stacks(seed: int = 0, n_tokens: int = 40, dtype: torch.dtype = torch.float32) -> ChunkKV:
    """A chunk of three stacks of random numbers, for one text."""
    first, *others = (make_chunk(seed + i, n_tokens, dtype=dtype, **sizes) for i, sizes in enumerate(UNLIKE))
    alike = {"text": first.summary.text, "token_ids": first.summary.token_ids}
    return ChunkKV.of([first, *(replace(one, summary=replace(one.summary, **alike)) for one in others)])


def whole(store: ChunkKVStore, key: str, chunk: ChunkKV) -> bool:
    """Whether the store gives back exactly `chunk`, stack by stack."""
    found, put = store.summary(key), chunk.stacks
    parts = zip(found.stacks, put, strict=True)
    scored = all(
        torch.equal(getattr(one, name), getattr(other.summary, name))
        for one, other in parts
        for name in ("token_ids", "mean", "low", "high", "local_query")
    )
    kv = [store.read_blocks(key, stack=index) for index in range(len(put))]
    return scored and found.text == chunk.summary.text and all(map(torch.equal, kv, (one.kv for one in put)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [1, 16, 100])
def test_gives_back_every_stack(store: ChunkKVStore, dtype: torch.dtype, n_tokens: int) -> None:
    chunk = make_stacks(n_tokens=n_tokens, dtype=dtype)
    store.put(A, chunk)
    store.put(B, make_chunk(7))
    assert whole(store, A, chunk) and same(store, B, make_chunk(7))
    assert not whole(store, A, make_stacks(seed=9, n_tokens=n_tokens, dtype=dtype))
    assert len(store) == 2 and store.verify() == []


@pytest.mark.parametrize("name", KV_DTYPES)
def test_any_part_of_a_stack_is_that_part_of_the_whole(store: ChunkKVStore, name: str) -> None:
    chunk, read = make_stacks(n_tokens=100), 0
    store.put(A, chunk, kv_dtype=name)
    for index, put in enumerate(chunk.stacks):
        alone = ChunkKVStore(":memory:")
        alone.put(A, put, kv_dtype=name)
        assert torch.equal(store.read_blocks(A, stack=index), alone.read_blocks(A)), "as it would be by itself"
        read += alone.bytes_read
        assert store.bytes_read == read
    kv = store.read_blocks(A, stack=1)
    for blocks, layers in (([3], [1]), ([6, 0], [1, 0]), ([], [0])):
        assert torch.equal(store.read_blocks(A, blocks, layers, stack=1), kv[layers][:, blocks])


def test_refuses_stacks_that_are_not_there(store: ChunkKVStore) -> None:
    store.put(A, make_stacks())
    store.put(B, make_chunk())
    for key, stack in ((A, 3), (B, 1)):
        with pytest.raises(IndexError):
            store.read_blocks(key, stack=stack)
    with pytest.raises(IndexError, match="Layer 1"):
        store.read_blocks(A, [0], [1], stack=2)


def test_refuses_stacks_that_do_not_fit_together(store: ChunkKVStore) -> None:
    chunk = make_stacks()
    short, other = make_chunk(n_tokens=20).kv, chunk.others[0].to(torch.float16)
    for wrong, why in (
        (chunk.others[:1], "kv has 2 stacks, the summary 3"),
        ((short, chunk.others[1]), "kv must be"),
        ((other,) * 2, "one dtype"),
    ):
        with pytest.raises(ValueError, match=why):
            store.put(A, replace(chunk, others=wrong))
    assert A not in store


def test_another_object_reads_them_and_old_entries_stay_what_they_are(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_stacks())
        store.put(B, make_chunk(7))
    with ChunkKVStore(folder) as store:
        assert whole(store, A, make_stacks()) and same(store, B, make_chunk(7))
    kv = load_file(file_of(folder, A, "kv"))
    assert all(
        torch.equal(kv[name], own.kv) for name, own in zip(("kv", "kv.1", "kv.2"), make_stacks().stacks, strict=True)
    )
    assert set(load_file(file_of(folder, B, "kv"))) == {"kv"}
    plain = {"token_ids", "mean", "low", "high", "local_query", "text", "block_crcs"}
    assert set(load_file(file_of(folder, B, "summary"))) == plain
    assert [version_of(file_of(folder, key, part)) for key in (A, B) for part in ("kv", "summary")] == [*"3322"]


def version_of(path: Path) -> str:
    raw = path.read_bytes()
    return str(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["version"])


@pytest.mark.parametrize("part", ["kv", "summary"])
def test_no_flipped_bit_goes_unseen(folder: Path, part: str) -> None:
    chunk = make_stacks(n_tokens=20)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk)
        path, draw = file_of(folder, A, part), random.Random(part)
        size = 8 * path.stat().st_size
        for bit in [*range(0, 640, 9), *(draw.randrange(size) for _ in range(60)), size - 5]:
            flip(path, bit)
            with pytest.raises(DamagedEntry):
                whole(store, A, chunk)
            assert store.verify() == [A]
            flip(path, bit)
        assert store.verify() == [] and whole(store, A, chunk)


def test_a_flip_in_a_stack_not_asked_for_does_no_harm(folder: Path) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_stacks())
        path = file_of(folder, A, "kv")
        flip(path, 8 * path.stat().st_size - 5)
        store.read_blocks(A), store.read_blocks(A, stack=1)
        with pytest.raises(DamagedEntry, match="block 2 of layer 0"):
            store.read_blocks(A, stack=2)


@pytest.mark.parametrize("wiring", ["gemma4-unlike-heads", "gemma4-sharing"])
@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_an_engine_answers_from_a_folder_as_it_did_when_it_filled_it(folder: Path, wiring: str, kv_dtype: str) -> None:
    chunks, answers = ["the first of two chunks, which is long", "and the second"], []
    for _ in range(2):
        with ChunkKVStore(folder) as store:
            engine = tiny_engine(wiring, store, kv_dtype=kv_dtype)
            engine.precompute(chunks)
            methods: list[Method] = [SamKV(keep=0.5, recompute=1 / 3), SamKV.paper(keep=0.5), Reuse()]
            answers.append([engine.answer("which?", chunks, method=method, max_new_tokens=4) for method in methods])
    first, again = ([(answer.text, answer.report.kv_bytes_read) for answer in some] for some in answers)
    assert first == again and all(read for _, read in again)
    full = engine.adapter.shape.bytes_per_token * answers[0][0].report.prompt_tokens
    assert answers[0][0].report.kv_bytes_full == full


@pytest.mark.parametrize("wiring", ["gemma4-unlike-heads", "deepseek-v3"])
def test_the_estimate_is_a_little_high(wiring: str, folder: Path) -> None:
    attached, ids = adapter(wiring), random_ids(900, 1)
    with ChunkKVStore(folder) as store:
        store.put(A, attached.ingest(["four" * 900], [ids])[0])
        actual = store.stats().bytes
    assert actual <= stored_bytes([900], attached, "model") <= 1.05 * actual + 2048
