"""The reference of `rope_gather` against a float64 oracle that copies and turns one element at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samkv_kernels import rope_gather as gathering
from samkv_kernels.rope_gather import Angles, Piece, Stored, rope_gather
from samkv_rag.store.quantise import QUANTISERS, KVForm
from tests.kernels import oracles
from tests.kernels.inputs import TOLERANCE, far

shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 3), "blocks": st.integers(1, 4), "heads": st.integers(1, 3), "size": st.integers(1, 5),
        "dim": st.integers(1, 6).map(lambda n: 2 * n), "turning": st.integers(0, 6), "interleaved": st.booleans(),
        "tokens": st.integers(0, 7), "seed": st.integers(0, 99),
    }
)  # fmt: skip


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_the_reference_copies_and_turns_what_the_oracle_does(shape: dict[str, Any]) -> None:
    torch.manual_seed(shape["seed"])
    kv = torch.randn(shape["layers"], shape["blocks"], 2, shape["heads"], shape["size"], shape["dim"])
    rows = torch.randint(-1, shape["blocks"] * shape["size"], (shape["tokens"],))
    theta = torch.randn(2, shape["tokens"], min(shape["turning"], shape["dim"] // 2))
    table = torch.randint(-1, 2, (shape["layers"],), dtype=torch.int32)
    angles = Angles(theta.cos(), theta.sin(), table, shape["interleaved"])
    got = rope_gather(Stored.of(kv), rows, angles, torch.float32)
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
        got = rope_gather(stored, rows, Angles(nothing, nothing), torch.float32)
        want = oracles.gathered(form.decode(records), rows.tolist(), nothing, nothing, interleaved=False)
        assert all(far(mine, exact) < TOLERANCE[torch.float32] for mine, exact in zip(got, want, strict=True))


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
