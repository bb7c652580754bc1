"""What int8, fp8 and int4 may cost: bounds that hold for every number, and entries that are as safe as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_kernels.rope_gather import Stored
from samkv_rag.store import ChunkKVStore, DamagedEntry, StoreError, estimate_bytes
from samkv_rag.store.quantise import KVForm, fp8_parts, int4_parts, int8_parts
from samkv_rag.types import BLOCK, KV_DTYPES, ChunkKV

from .conftest import Opener
from .samples import KEYS, file_of, flip, in_child, make_chunk

A, B = KEYS[:2]
FEWER = [name for name in KV_DTYPES if name != "model"]
QUANTISED = ["int8", "fp8", "int4"]
ROUNDING = 2.0**-22
"""Of the fp32 arithmetic, relative to the largest number involved."""

sizes = st.floats(1e-30, 1e30)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 3]), st.sampled_from([2, 8, 34]))


@st.composite
def blocks(draw: st.DrawFn) -> Tensor:
    """fp32 `(L, B, 2, G, BLOCK, D)`: each channel and each token with a size and an offset of its own; some are 0."""
    layers, count, heads, width = draw(shapes)
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kv = torch.randn(layers, count, 2, heads, BLOCK, width, generator=draws)
    channels = torch.randn(heads, 1, width, generator=draws) * draw(st.sampled_from([0.0, 1.0, 3.0]))
    tokens = torch.randn(heads, BLOCK, 1, generator=draws) * draw(st.sampled_from([0.0, 1.0, 3.0]))
    kv = kv * channels.exp() * tokens.exp() + channels * draw(st.sampled_from([0.0, 1.0, 100.0]))
    kv = kv.masked_fill(torch.rand(kv.shape, generator=draws) < draw(st.sampled_from([0.0, 0.5, 1.0])), 0.0)
    return kv * draw(sizes)


@pytest.mark.parametrize("parts_of", [int8_parts, int4_parts])
@settings(deadline=None)
@given(blocks())
def test_whole_numbers_are_off_by_half_a_step_at_most(parts_of: Callable[[Tensor], Stored], kv: Tensor) -> None:
    parts = parts_of(kv)
    keys, values = parts.restored(torch.float32).unbind(2)
    largest = kv.abs().amax((-1, -2), keepdim=True)
    for got, want, scale, part in (
        (keys, kv[:, :, 0], parts.key_scale, 0),
        (values, kv[:, :, 1], parts.value_scale, 1),
    ):
        there = (kv != 0).any(-1).any(2).any(2)[:, :, None, :, None] | (parts_of is int8_parts)  # others pad blocks
        assert ((got - want).abs() <= scale.float() / 2 + ROUNDING * largest[:, :, part]).where(there, True).all()


@settings(deadline=None)
@given(blocks())
def test_an_int8_step_is_as_small_as_the_range_allows(kv: Tensor) -> None:
    """Over 127: half a key channel's range, plus what rounding its middle to bf16 adds; a token's largest value."""
    parts, tiny = int8_parts(kv), 1e-37
    keys, values = kv.unbind(2)
    low, high = keys.amin(-2, keepdim=True), keys.amax(-2, keepdim=True)
    half = (high - low) / 2 + (low + high).abs() / 2 * 2**-8
    assert (parts.key_scale.float() <= half / 127 * (1 + 2**-6) + tiny).all()
    assert (parts.value_scale.float() <= values.abs().amax(-1, keepdim=True) / 127 * (1 + 2**-6) + tiny).all()


@settings(deadline=None)
@given(blocks())
def test_an_int4_step_is_as_small_as_the_range_allows(kv: Tensor) -> None:
    """A fifteenth of it and of what rounding its lower end to bf16 adds; what pads a block is not part of it."""
    filled = kv.clone()
    filled[..., 5:, :] = 0
    for parts, part in ((int4_parts(kv), kv), (int4_parts(filled), kv[..., :5, :])):
        for entries, dim, scale in zip(part.unbind(2), (-2, -1), (parts.key_scale, parts.value_scale), strict=True):
            low, high = entries.aminmax(dim=dim, keepdim=True)
            steps = ((high - low) + low.abs() * 2**-7) / 15 * (1 + 2**-6) + 1e-37
            assert (scale.float()[..., : steps.shape[-2], :] <= steps).where((entries != 0).any(dim, True), True).all()


@settings(deadline=None)
@given(blocks())
def test_fp8_is_off_by_a_sixteenth_of_the_number_at_most(kv: Tensor) -> None:
    """For a key, of its distance from the middle of its channel."""
    parts = fp8_parts(kv)
    assert parts.key_zero is not None
    scale = torch.stack([parts.key_scale, parts.value_scale], 2).float()
    moved = torch.stack([kv[:, :, 0] - parts.key_zero.float(), kv[:, :, 1]], 2)
    error, slack = (parts.restored(torch.float32) - kv).abs(), ROUNDING * kv.abs().amax((-1, -2), keepdim=True)
    assert (error <= torch.maximum(moved.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5) + slack).all()
    assert (scale * 448 >= moved.abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize(("parts_of", "most"), [(fp8_parts, 0.2), (int4_parts, 0.5)])
def test_a_key_channel_that_is_large_in_every_token_is_none_the_worse(
    parts_of: Callable[[Tensor], Stored], most: float
) -> None:
    """As biases make it; in the last block of a chunk, too, which is padded with zeros."""
    kv = torch.randn(1, 2, 2, 2, BLOCK, 16, generator=torch.Generator().manual_seed(0))
    kv[:, :, 0, :, :, 3] += 300
    kv[:, 1, :, :, 5:] = 0
    error = (parts_of(kv).restored(torch.float32) - kv)[:, :, 0, :, :, 3].abs()
    assert error[:, 0].max() < most and error[:, 1, :, :5].max() < most


def test_a_large_key_channel_costs_the_others_nothing() -> None:
    """Why keys are scaled by channel: in values, which are scaled by token, the same does show."""
    kv = torch.randn(1, 4, 2, 2, BLOCK, 16, generator=torch.Generator().manual_seed(0))
    kv[:, :, 0] = kv[:, :, 1]
    kv[..., 3] *= 200
    error = (int8_parts(kv).restored(torch.float32) - kv)[..., 4:].square().mean((0, 1, 3, 4, 5)).sqrt()
    assert error[0] < 0.01 < 0.2 < error[1]


@pytest.mark.parametrize("number", [0.0, 1.0, -3.7, 1e-40, 6e4])
@pytest.mark.parametrize("name", QUANTISED)
def test_numbers_all_equal_come_back(name: str, number: float) -> None:
    kv = torch.full((1, 2, 2, 1, BLOCK, 8), number)
    form = KVForm.of(kv, name)
    back = form.decode(form.encode(kv))
    assert torch.allclose(back, kv, rtol=2e-2 if name == "fp8" else 1e-2, atol=1e-39)
    assert number or not back.any()


# -- in a store ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_part_of_an_entry_is_that_part_of_the_whole(store: ChunkKVStore, name: str, dtype: torch.dtype) -> None:
    chunk = make_chunk(n_tokens=100, layers=4, dtype=dtype)
    store.put(A, chunk, kv_dtype=name)
    whole = store.read_blocks(A)
    assert whole.dtype == dtype and whole.shape == chunk.kv.shape
    limit = {"bf16": 1, "fp16": 0.2, "int8": 1, "fp8": 8, "int4": 14}[name] + (1 if dtype == torch.bfloat16 else 0)
    assert 0 < (whole.float() - chunk.kv.float()).abs().max() < limit or torch.equal(whole, chunk.kv)
    for part, layers in (([3], [2]), ([6, 0], [0, 3]), ([1, 2], None), (None, [1]), ([], [0])):
        want = whole if layers is None else whole[layers]
        assert torch.equal(store.read_blocks(A, part, layers), want if part is None else want[:, part])


@pytest.mark.parametrize("name", KV_DTYPES)
def test_the_bytes_read_are_those_stored(store: ChunkKVStore, name: str) -> None:
    store.put(A, make_chunk(n_tokens=100, layers=4), kv_dtype=name)
    stored = store.read_stored(A)
    per_head = int({"model": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1, "int4": 1 / 2}[name] * 2 * BLOCK * 8)
    per_head += {"int8": 2 * 2 * 8 + 2 * BLOCK, "fp8": 2 * 2 * BLOCK + 2 * 8, "int4": 2 * 2 * (8 + BLOCK)}.get(name, 0)
    assert stored.nbytes == 4 * 7 * 2 * per_head == 28 * stored.form.block_bytes
    assert store.bytes_read == stored.nbytes
    assert store.read_stored(A, [3, 4], [1]).nbytes == 2 * stored.form.block_bytes
    assert torch.equal(stored.restored(), store.read_blocks(A))


@pytest.mark.parametrize("name", KV_DTYPES)
def test_the_files_are_what_the_estimate_says(folder: Path, name: str) -> None:
    chunk = make_chunk(1, n_tokens=200, layers=4, heads=3, width=64, dtype=torch.bfloat16, text="four" * 200)
    with ChunkKVStore(folder) as store:
        store.put(A, chunk, kv_dtype=name)
        stored, actual = store.read_stored(A), store.stats().bytes
    file = file_of(folder, A, "kv").stat().st_size
    assert stored.nbytes < file < stored.nbytes + 512
    estimate = estimate_bytes(200, 4, 3, 64, torch.bfloat16, heads=6, kv_dtype=name)
    assert actual <= estimate <= actual * 1.02 + 2048 + 2 * 200


def test_parts_are_views_of_what_was_read(store: ChunkKVStore) -> None:
    store.put(A, make_chunk(n_tokens=40), kv_dtype="int8")
    stored = store.read_stored(A, [1, 2])
    parts = stored.parts
    assert parts is not None and parts.key_zero is not None
    assert parts.keys.dtype == torch.int8 and parts.keys.shape == (3, 2, 2, BLOCK, 8)
    assert parts.key_zero.shape == parts.key_scale.shape == (3, 2, 2, 1, 8)
    assert parts.value_scale.shape == (3, 2, 2, BLOCK, 1)
    assert parts.values.untyped_storage().data_ptr() == stored.data.untyped_storage().data_ptr()
    store.put(B, make_chunk(n_tokens=40))
    assert store.read_stored(B).parts is None


def test_stats_tell_how_entries_are_stored(open_store: Opener) -> None:
    store = open_store()
    assert store.stats().kv_dtypes == {}
    for key, name in zip(KEYS, ["int8", "model", "int8", "fp8"], strict=False):
        store.put(key, make_chunk(dtype=torch.bfloat16), kv_dtype=name)
    assert store.stats().kv_dtypes == {"bf16": 1, "fp8": 1, "int8": 2}
    store.put(KEYS[0], make_chunk(dtype=torch.bfloat16))
    store.delete([KEYS[3]])
    assert store.stats().as_dict()["kv_dtypes"] == {"bf16": 2, "int8": 1}


def test_another_process_reads_them(folder: Path) -> None:
    def put() -> None:
        with ChunkKVStore(folder) as store:
            store.put(A, make_chunk(), kv_dtype="int8")
            torch.save(store.read_blocks(A), folder / "before.pt")

    assert in_child(put) == 0
    for path in folder.glob("catalogue.sqlite*"):
        path.unlink()
    with ChunkKVStore(folder) as store:
        assert torch.equal(store.read_blocks(A), torch.load(folder / "before.pt"))
        assert store.verify() == [] and store.stats().kv_dtypes == {"int8": 1}


@pytest.mark.parametrize("name", QUANTISED)
def test_a_flipped_bit_of_numbers_or_parameters_is_seen(folder: Path, name: str) -> None:
    with ChunkKVStore(folder) as store:
        store.put(A, make_chunk(), kv_dtype=name)
        record = store.read_stored(A).form.block_bytes
        path = file_of(folder, A, "kv")
        end = path.stat().st_size
        for byte in (end - record, end - record // 2, end - 40, end - 1):
            flip(path, 8 * byte + 3)
            assert store.verify() == [A] and A not in store
            with pytest.raises(DamagedEntry, match="block 2 of layer 2"):
                store.read_blocks(A)
            assert store.read_blocks(A, [0, 1], [0, 1]).isfinite().all()
            flip(path, 8 * byte + 3)
        flip(path, 8 * end - 5)
        assert store.prune().damaged == 1 and len(store) == 0
        store.put(A, make_chunk(), kv_dtype=name)
        assert store.verify() == []


def test_the_same_text_stored_otherwise_replaces_the_entry(store: ChunkKVStore) -> None:
    store.put(A, make_chunk(), kv_dtype="int8")
    before = store.stats().bytes
    store.put(A, make_chunk(), kv_dtype="model")
    assert torch.equal(store.read_blocks(A), make_chunk().kv) and len(store) == 1 and store.stats().bytes > before


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("fp16", 1e5),
        ("int8", float("inf")),
        ("int8", float("nan")),
        ("fp8", float("-inf")),
        ("int4", float("nan")),
        ("int4", 3e38),
        ("int8", -3e38),
    ],  # fmt: skip
)
def test_numbers_that_do_not_fit_are_refused(store: ChunkKVStore, name: str, number: float) -> None:
    chunk = make_chunk()
    bent = ChunkKV(chunk.summary, chunk.kv.clone())
    bent.kv[1, 1, 0, 1, 7, 3] = number
    with pytest.raises(StoreError, match="kv_dtype='model'"):
        store.put(A, bent, kv_dtype=name)
    assert A not in store and len(store) == 0


def test_an_unknown_kv_dtype_is_refused(store: ChunkKVStore) -> None:
    with pytest.raises(ValueError, match="model, bf16, fp16, int8, fp8, int4"):
        store.put(A, make_chunk(), kv_dtype="int2")
