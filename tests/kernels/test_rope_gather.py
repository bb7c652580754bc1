"""`rope_gather` against a float64 oracle that copies and turns one element at a time: the reference, and Numba."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_kernels import rope_gather as gathering
from samkv_kernels.backend import Backend
from samkv_kernels.cpu import gathering as kernel
from samkv_kernels.cpu import restoring
from samkv_kernels.rope_gather import Angles, Piece, Stored, rope_gather, rope_gather_into, rope_gather_pieces_into
from samkv_rag.store.quantise import QUANTISERS, KVForm
from tests.counting import counted
from tests.kernels import oracles
from tests.kernels.inputs import TOLERANCE, far

BACKENDS: list[Backend] = ["torch", "numba"]
shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 3), "blocks": st.integers(1, 4), "heads": st.integers(1, 3), "size": st.integers(1, 5),
        "dim": st.integers(1, 6).map(lambda n: 2 * n), "turning": st.integers(0, 6), "interleaved": st.booleans(),
        "tokens": st.integers(0, 7), "seed": st.integers(0, 99), "backend": st.sampled_from(["torch", "numba"]),
    }
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def numba_on_any_machine() -> Iterator[None]:
    """Where only one of many threads could run the kernel, the reference would be tested in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "THREADS", 1 << 10)
        yield


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_what_the_oracle_does_is_copied_and_turned(shape: dict[str, Any]) -> None:
    torch.manual_seed(shape["seed"])
    kv = torch.randn(shape["layers"], shape["blocks"], 2, shape["heads"], shape["size"], shape["dim"])
    rows = torch.randint(-1, shape["blocks"] * shape["size"], (shape["tokens"],))
    theta = torch.randn(2, shape["tokens"], min(shape["turning"], shape["dim"] // 2))
    table = torch.randint(-1, 2, (shape["layers"],), dtype=torch.int32)
    angles = Angles(theta.cos(), theta.sin(), table, shape["interleaved"])
    got = rope_gather(Stored.of(kv), rows, angles, torch.float32, backend=shape["backend"])
    theta = torch.where((table < 0)[:, None, None], 0.0, theta[table.clamp(min=0)])
    want = oracles.gathered(kv, rows.tolist(), theta.cos(), theta.sin(), shape["interleaved"])
    for mine, exact in zip(got, want, strict=True):
        assert far(mine, exact) < TOLERANCE[torch.float32]


def test_the_wrong_pairing_would_be_seen() -> None:
    """Negative control of the test above."""
    kv, rows, theta = torch.randn(1, 1, 2, 1, 4, 8), torch.arange(4), torch.randn(1, 4, 4)
    got, _ = rope_gather(Stored.of(kv), rows, Angles(theta.cos(), theta.sin(), interleaved=True), torch.float32)
    want, _ = oracles.gathered(kv, rows.tolist(), theta.cos(), theta.sin(), interleaved=False)
    assert far(got, want) > 0.1


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "int4"])
def test_the_stores_quantised_blocks_come_out_as_the_store_restores_them(kv_dtype: str) -> None:
    torch.manual_seed(0)
    kv = torch.randn(2, 3, 2, 2, 16, 8)
    form = KVForm.of(kv, kv_dtype)
    records = form.encode(kv)
    stored = QUANTISERS[kv_dtype].unpack(records, 2, 8)
    for rows in (torch.randperm(48)[:20], torch.arange(20)):
        nothing = torch.empty(1, 20, 0)
        want = oracles.gathered(form.decode(records), rows.tolist(), nothing, nothing, interleaved=False)
        for backend in BACKENDS:
            got = rope_gather(stored, rows, Angles(nothing, nothing), torch.float32, backend=backend)
            assert all(far(mine, exact) < TOLERANCE[torch.float32] for mine, exact in zip(got, want, strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
def test_numba_gathers_pieces_as_the_reference_does(
    kept: torch.dtype, cached: torch.dtype, interleaved: bool, on_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In caches with room behind, from blocks that were picked out of others, with gaps, and what is not finite."""
    calls = counted(monkeypatch, kernel, "gather_into")
    torch.manual_seed(0)
    kv = torch.randn(3, 6, 2, 4, 16, 32).to(kept)
    kv[0, 2, :, 1, 3, 5:7] = torch.tensor([torch.nan, torch.inf], dtype=kept)
    if kept == torch.float32:
        kv.view(torch.int32)[0, 2, :, 1, 3, 5] = 0x7FFFFFFF  # a NaN that would round to 0
    theta, table = torch.randn(2, 70, 12), torch.tensor([1, -1, 0], dtype=torch.int32)
    angles, rows = Angles(theta.cos(), theta.sin(), table, interleaved), torch.arange(30, dtype=torch.int32)
    pieces = [Piece(2, Stored.of(kv[:, 1:]), rows + 7), Piece(35, Stored.of(kv[:, 3, None]), rows % 9 - 1)]
    found = {}
    for backend in BACKENDS:
        keys, values = (torch.full((3, 4, 80, 32), torch.nan, dtype=cached)[:, :, :70] for _ in range(2))
        rope_gather_pieces_into(keys, values, pieces, angles, backend)
        found[backend] = keys, values
    assert len(calls) == (2 if (kept, cached) in kernel._PAIRS else 0), "one call a piece, none by the reference"
    (keys, values), (own_keys, own_values) = found["torch"], found["numba"]
    assert torch.equal(values.nan_to_num(5.0), own_values.nan_to_num(5.0)) and keys.isnan().sum() == 2
    assert torch.equal(keys.isnan(), own_keys.isnan())
    assert far(own_keys.nan_to_num(0, 0, 0), keys.nan_to_num(0, 0, 0)) < TOLERANCE[cached]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8", "int4"])
def test_numba_restores_pieces_as_the_reference_does(
    kv_dtype: str, cached: torch.dtype, interleaved: bool, on_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From blocks that were picked out of others, with gaps, zeros, a channel far from 0, large and small numbers."""
    calls = counted(monkeypatch, restoring, "gather_into")
    torch.manual_seed(0)
    kv = torch.randn(3, 6, 2, 4, 16, 32) * torch.logspace(-4, 4, 32)
    kv[:, :, 0, :, :, 7] += 300
    kv[1, 2] = 0
    stored = QUANTISERS[kv_dtype].unpack(KVForm.of(kv, kv_dtype).encode(kv), 4, 32)
    theta, table = torch.randn(2, 70, 12), torch.tensor([1, -1, 0], dtype=torch.int32)
    angles, rows = Angles(theta.cos(), theta.sin(), table, interleaved), torch.arange(30, dtype=torch.int32)
    pieces = [Piece(2, stored._each(lambda x: x[:, 1:]), rows + 7), Piece(35, stored, rows % 9 - 1)]
    found = {}
    for backend in BACKENDS:
        found[backend] = torch.full((3, 4, 80, 64), torch.nan, dtype=cached)[:, :, :70].chunk(2, -1)
        rope_gather_pieces_into(*found[backend], pieces, angles, backend)
    assert len(calls) == (0 if cached == torch.float16 else 2), "one call a piece, none by the reference"
    for mine, want in zip(found["numba"], found["torch"], strict=True):
        assert far(mine, want) < TOLERANCE[cached]
        for own, other in zip(mine.unbind(-1), want.unbind(-1), strict=True):
            assert far(own, other) < 50 * TOLERANCE[cached], "of each channel, most of which are small"


def test_every_number_of_eight_bits_is_restored() -> None:
    codes = torch.arange(256).to(torch.uint8).view(1, 1, 1, 16, 16)
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.bfloat16)
    nothing, rows = Angles(torch.empty(1, 16, 0), torch.empty(1, 16, 0)), torch.arange(16)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        numbers = codes.view(dtype)
        stored = Stored(numbers, numbers, one, one)
        assert restoring.readable(stored, *torch.empty(2, 1, 1, 16, 16))
        finite = numbers[0, 0].float().isfinite()
        for found in rope_gather(stored, rows, nothing, torch.float32, backend="numba"):
            assert torch.equal(found[0][finite], numbers[0, 0].float()[finite])
            assert found[0].isfinite().all(), "a store keeps nothing that is not finite"


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_numbers_of_eight_bits_are_restored(backend: Backend) -> None:
    """A scale of 2 ** 8 and more, and the power of two that makes floats of the codes, are too large together."""
    kv = torch.randn(1, 1, 2, 1, 16, 32)
    kv[..., 3, 0] = 1e6
    stored = QUANTISERS["fp8"].unpack(KVForm.of(kv, "fp8").encode(kv), 1, 32)
    nothing = Angles(torch.empty(1, 16, 0), torch.empty(1, 16, 0))
    found = rope_gather(stored, torch.arange(16), nothing, torch.float32, backend=backend)
    for own, exact in zip(found, kv[0, 0, :, 0], strict=True):
        assert far(own[0, 0], exact) < 0.07
    others = torch.arange(16) != 3
    assert far(found[1][0, 0, others], kv[0, 0, 1, 0, others]) < 0.07, "of values every token has a scale"


def test_what_is_restored_has_parameters_as_a_store_keeps_them() -> None:
    stored = QUANTISERS["int8"].unpack(KVForm.of(kv := torch.randn(1, 2, 2, 2, 16, 8), "int8").encode(kv), 2, 8)
    cache = torch.empty(2, 1, 2, 32, 8)
    assert restoring.readable(stored, *cache) and not restoring.readable(stored, *cache.half())
    scale = stored.key_scale
    assert scale is not None and not restoring.readable(replace(stored, key_scale=scale.float()), *cache)
    assert not restoring.readable(replace(stored, keys=stored.keys.mT.contiguous().mT), *cache)
    with pytest.raises(IndexError):
        restoring.gather_into(*cache, stored, torch.tensor([32]), Angles(torch.empty(1, 1, 0), torch.empty(1, 1, 0)))


@pytest.mark.parametrize(
    ("change", "threads", "sharing", "taken"),
    [
        (lambda kv: kv, 2, False, True),
        (lambda kv: kv, 3, False, False),
        (lambda kv: kv, 3, True, True),
        (lambda kv: kv.double(), 1, False, False),
        (lambda kv: kv.mT.contiguous().mT, 1, False, False),
        (lambda kv: torch.cat([kv, kv[..., :1]], -1)[..., :8], 1, False, False),
        (lambda kv: kv[:, :, :, :1].expand(-1, -1, -1, 2, -1, -1), 1, False, True),
    ],
    ids=["as stored", "many threads", "that share", "another dtype", "another order", "rows apart", "heads shared"],
)
def test_the_kernel_takes_what_is_stored_in_rows_and_the_reference_takes_the_rest(
    change: Callable[[Tensor], Tensor], threads: int, sharing: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "THREADS", 2)
    monkeypatch.setattr("samkv_kernels.cpu.threads.several", lambda: sharing)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls = counted(monkeypatch, kernel, "gather_into")
    torch.manual_seed(0)
    stored, rows, theta = Stored.of(change(torch.randn(1, 2, 2, 2, 4, 8))), torch.arange(7), torch.randn(1, 7, 4)
    keys, values = torch.empty(2, 1, 2, 7, 8)
    rope_gather_into(keys, values, stored, rows, Angles(theta.cos(), theta.sin()), "numba")
    want = rope_gather(stored, rows, Angles(theta.cos(), theta.sin()), torch.float32)
    assert not kernel.readable(stored, *torch.empty(2, 1, 2, 7, 12)[..., :8]), "a cache whose slots are no rows"
    assert len(calls) == taken and far(keys, want[0]) < TOLERANCE[torch.float32] and torch.equal(values, want[1])


def test_room_is_left_behind_the_gathered_tokens() -> None:
    keys, values = rope_gather(
        Stored.of(torch.randn(2, 1, 2, 3, 4, 8)), torch.arange(4), Angles(torch.ones(1, 4, 4), torch.zeros(1, 4, 4)),
        torch.bfloat16, room=5,
    )  # fmt: skip
    assert keys.shape == values.shape == (2, 3, 9, 8)
    assert keys.dtype == values.dtype == torch.bfloat16


def test_no_more_is_copied_to_a_device_than_is_needed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that the kernel cannot read in place are copied run by run, and every gap belongs to one run."""
    block = Stored(torch.zeros(1, 1, 1, 4, 8), torch.zeros(1, 1, 1, 4, 8))
    pieces = [Piece(start, block, torch.zeros(4, dtype=torch.int32)) for start in (2, 6, 12)]
    far, near = (torch.empty(1, 1, 20, 8, device=device) for device in ("meta", "cpu"))
    monkeypatch.setattr(gathering, "COPIED", 300)  # a piece has 256 bytes
    runs = list(gathering._launches(pieces, far))
    assert [(begin, stop, [piece.start for piece in run]) for begin, stop, run in runs] == [
        (0, 10, [2, 6]),
        (10, 20, [2]),
    ]
    assert all(piece.stored.keys.device == far.device for _, _, run in runs for piece in run)
    assert [gathering._gaps(run, stop - begin) for begin, stop, run in runs] == [[(0, 2)], [(0, 2), (6, 4)]]
    assert [len(run) for _, _, run in gathering._launches(pieces, near)] == [3], "what is there is not copied"


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_and_values_may_lie_side_by_side(backend: Backend) -> None:
    torch.manual_seed(0)
    stored, rows, theta = Stored.of(torch.randn(2, 2, 2, 3, 4, 8)), torch.tensor([5, 0, -1, 7]), torch.randn(1, 4, 4)
    angles, entries = Angles(theta.cos(), theta.sin()), torch.full((2, 3, 6, 16), 9.0)
    halves = entries.chunk(2, -1)
    rope_gather_into(*halves, stored, rows, angles, backend)
    for half, want in zip(halves, rope_gather(stored, rows, angles, torch.float32), strict=True):
        assert far(half[:, :, :4], want) < TOLERANCE[torch.float32] and (half[:, :, 4:] == 9).all()
    assert kernel.readable(stored, *halves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("row", "turned", "slots"), [(8, 5, 5), (7, 4, 5), (7, 5, 4)])
def test_nothing_outside_of_the_blocks_is_read(row: int, turned: int, slots: int, backend: Backend) -> None:
    rows, angle = torch.tensor([0, 1, 2, 3, row]), torch.ones(1, turned, 4)
    keys, values = torch.empty(2, 1, 2, slots, 8)
    with pytest.raises((IndexError, RuntimeError)):
        rope_gather_into(keys, values, Stored.of(torch.randn(1, 2, 2, 2, 4, 8)), rows, Angles(angle, angle), backend)
