"""Every kernel against its reference: on a GPU, or in Triton's interpreter (see `test_interpreter`).

Outputs and intermediate buffers are poisoned: memory that torch hands out is full of NaN, so that what a kernel leaves
out shows. So is what follows the live part of a buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from samkv_kernels.block_scores import block_logits, block_scores, bound_logits
from samkv_kernels.rope_gather import Angles, Piece, Stored, rope_gather, rope_gather_pieces_into
from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans, attention_shares, sparse_attention
from samkv_rag.store.quantise import QUANTISERS, KVForm
from tests.kernels.inputs import DEVICE, NEEDS, TOLERANCE, far, poisoned

pytestmark = NEEDS

HALVES = [torch.float16, torch.bfloat16]
SOURCES = ["model", "fp16", "bf16", "int8", "fp8", "int4"]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned():
        yield


def stored(kv_dtype: str, layers: int, blocks: int, heads: int, dim: int) -> Stored:
    """Random blocks of 16 tokens as the store holds them in `kv_dtype`."""
    kv = torch.randn(layers, blocks, 2, heads, 16, dim)
    form = KVForm.of(kv, kv_dtype)
    held = form.encode(kv)
    if kv_dtype not in QUANTISERS:
        return Stored.of(held.to(DEVICE))
    return QUANTISERS[kv_dtype].unpack(held.to(DEVICE), heads, dim)


def turns(tokens: int, half: int, table: list[int] | None = None, interleaved: bool = False) -> Angles:
    theta = torch.randn(1 if table is None else 2, tokens, half, device=DEVICE)
    chosen = None if table is None else torch.tensor(table, dtype=torch.int32, device=DEVICE)
    return Angles(theta.cos(), theta.sin(), chosen, interleaved)


def gather_both_ways(source: Stored, rows: list[int], angles: Angles, dtype: torch.dtype) -> float:
    at = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    got = rope_gather(source, at, angles, dtype, room=3, backend="triton")
    want = rope_gather(source, at, angles, dtype, room=3)
    assert all(bool(x[:, :, len(rows) :].isnan().all()) for x in got), "the room is not the kernel's to write"
    pairs = zip(got, want, strict=True)
    return max(far(mine[:, :, : len(rows)], theirs[:, :, : len(rows)]) for mine, theirs in pairs)


ROWS = [0, 5, 17, -1, 46, 45, 47, 31, 32, 1, 2, 3, 16, 20, 21, 22, 23, -1]  # two tiles, any order, slots with no source


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_of_stored_blocks_is_gathered(source: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        distance = gather_both_ways(stored(source, 2, 3, 2, 64), ROWS, turns(len(ROWS), 32), dtype)
        assert distance < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("dim", "half", "table", "interleaved"),
    [(32, 16, [1, -1], False), (96, 48, None, False), (80, 16, [0, 1], True), (256, 128, None, True),
     (64, 0, None, False), (512, 256, None, False)],
)  # fmt: skip
def test_every_way_to_turn_is_known(dim: int, half: int, table: list[int] | None, interleaved: bool) -> None:
    angles = turns(4, half, table, interleaved)
    assert (
        gather_both_ways(stored("fp16", 2, 2, 1, dim), [3, 31, -1, 16], angles, torch.float16)
        < TOLERANCE[torch.float16]
    )


@pytest.mark.parametrize("rows", [[], [-1], [7]])
def test_none_and_one_token_are_gathered(rows: list[int]) -> None:
    assert gather_both_ways(stored("bf16", 1, 1, 1, 64), rows, turns(len(rows), 32), torch.bfloat16) < 0.01


PIECES = [
    (2, "int8", 3, [5, 17, -1]),
    (5, "bf16", 2, [0, 31]),
    (9, "int8", 1, list(range(15, -1, -1)) + [0, 1, 2]),
    (29, "int4", 2, [9, 16, 31]),
]


@pytest.mark.parametrize("pieces", [PIECES, PIECES[:1], PIECES[1:], []])
@pytest.mark.parametrize(("behind", "halves"), [(0, False), (21, False), (21, True)])
def test_pieces_of_any_form_are_gathered_and_gaps_cleared(pieces: list[Any], behind: int, halves: bool) -> None:
    made = [
        Piece(start, stored(form, 2, blocks, 2, 64), torch.tensor(rows, dtype=torch.int32, device=DEVICE))
        for start, form, blocks, rows in pieces
    ]
    slots = max([1, *(piece.stop for piece in made)]) + behind
    angles, filled = turns(slots, 32, [1, 0]), []
    for backend in ("triton", "torch"):
        keys, values = (torch.empty(2, 2, slots + 1, 64, device=DEVICE)[:, :, :slots] for _ in range(2))
        if halves:  # side by side, as those of latents
            keys, values = torch.empty(2, 2, slots + 1, 128, device=DEVICE)[:, :, :slots].chunk(2, -1)
        rope_gather_pieces_into(keys, values, made, angles, backend)
        filled.append((keys, values))
    for got, want in zip(*filled, strict=True):
        assert not bool(want.isnan().any()) and far(got, want) < TOLERANCE[torch.float32]
        assert bool((want[:, :, :2] == 0).all()) or not pieces or pieces[0][0] > 2


def test_pieces_of_which_some_are_scaled_are_gathered_apart() -> None:
    plain, rows = stored("model", 1, 1, 2, 64), torch.arange(4, dtype=torch.int32, device=DEVICE)
    scaled = replace(plain, value_scale=torch.full_like(plain.keys, 3.0))
    made, filled = [Piece(0, plain, rows), Piece(4, scaled, rows)], []
    for backend in ("triton", "torch"):
        keys, values = (torch.empty(1, 2, 8, 64, device=DEVICE) for _ in range(2))
        rope_gather_pieces_into(keys, values, made, turns(8, 0), backend)
        filled.append(values)
    assert far(*filled) < TOLERANCE[torch.float32] and far(filled[0][:, :, 4:], 3 * filled[0][:, :, :4]) < 1e-6


def test_a_wrong_turn_would_be_seen() -> None:
    """Negative control: the distances above are not blind to angles."""
    source, angles = stored("model", 1, 2, 1, 64), turns(3, 32)
    at = torch.tensor([1, 2, 3], dtype=torch.int32, device=DEVICE)
    got, _ = rope_gather(source, at, replace(angles, sin=-angles.sin), torch.float32, backend="triton")
    assert far(got, rope_gather(source, at, angles, torch.float32)[0]) > 0.1


@pytest.mark.parametrize(
    ("counts", "layers", "groups", "rep", "asked", "dim"),
    [([3, 33], 1, 1, 7, 5, 80), ([1], 2, 2, 1, 1, 32), ([2, 0, 1], 1, 1, 16, 1, 64), ([0, 0], 1, 2, 2, 1, 64)],
)
def test_block_scores(counts: list[int], layers: int, groups: int, rep: int, asked: int, dim: int) -> None:
    query = torch.randn(len(counts), layers, groups * rep, asked, dim, device=DEVICE)
    mean = torch.randn(layers, sum(counts), groups, dim, device=DEVICE).bfloat16()
    low, high = mean - mean.abs(), mean + 1
    for function, summaries in ((block_logits, (mean,)), (bound_logits, (low, high))):
        got, want = (function(query, *summaries, counts, backend=way) for way in ("triton", "torch"))
        assert far(got, want) < TOLERANCE[torch.float32]
    pooled = [block_scores(query[:, :, :, 0], mean, counts, way) for way in ("triton", "torch")]
    assert far(*pooled) < 1e-5


def attention_case(
    batch: int, groups: int, rep: int, asked: int, kept: int, dim: int, dtype: torch.dtype, window: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Spans]:
    """Queries at any positions over kept tokens with gaps, in a buffer whose room is poisoned."""
    query = torch.randn(batch, groups * rep, asked, dim, device=DEVICE).to(dtype)
    buffers = [torch.full((batch, groups, kept + 5, dim), torch.nan, device=DEVICE, dtype=dtype) for _ in range(2)]
    key, value = (buffer[:, :, :kept] for buffer in buffers)
    for live in (key, value):
        live.copy_(torch.randn(live.shape))
    key_at = torch.stack([torch.randperm(3 * kept + 1)[:kept].sort().values for _ in range(batch)])
    query_at = torch.randint(0, 3 * kept + 1, (batch, asked))
    return query, key, value, Spans.causal(query_at.to(DEVICE), key_at.to(DEVICE), window)


def attend_both_ways(case: tuple[Tensor, Tensor, Tensor, Spans], softmax: Softmax = PLAIN) -> None:
    query, key, value, spans = case
    got, want = (sparse_attention(query, key, value, spans, softmax, way) for way in ("triton", "torch"))
    assert far(got, want) < 3 * TOLERANCE[query.dtype]
    got, want = (attention_shares(query, key, spans, softmax, way) for way in ("triton", "torch"))
    assert far(got, want) < 1e-5


@pytest.mark.parametrize(
    ("batch", "groups", "rep", "asked", "kept", "dim"),
    [(1, 1, 7, 21, 70, 64), (2, 2, 2, 9, 37, 96), (1, 1, 1, 1, 1, 32), (1, 1, 16, 3, 20, 256), (1, 2, 1, 3, 0, 64),
     (1, 1, 4, 3, 40, 512)],
)  # fmt: skip
def test_attention_over_gaps(batch: int, groups: int, rep: int, asked: int, kept: int, dim: int) -> None:
    attend_both_ways(attention_case(batch, groups, rep, asked, kept, dim, torch.float32))


@pytest.mark.parametrize(("wide", "values"), [(96, 64), (64, 80)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_to_values_of_another_width(wide: int, values: int, scale: float | None) -> None:
    """The output is as wide as the values; the scale is that of the keys."""
    query, key, _, spans = attention_case(2, 2, 2, 9, 37, wide, torch.float32)
    value = torch.randn(2, 2, 37, values, device=DEVICE)
    attend_both_ways((query, key, value, spans), Softmax(scale))
    got = sparse_attention(query, key, value, spans, Softmax(scale), "triton")
    same = torch.nn.functional.pad(value, (0, 96 - values))[..., :wide]
    want = sparse_attention(query, key, same, spans, Softmax(scale), "triton")
    common = min(wide, values)
    assert got.shape[-1] == values and far(got[..., :common], want[..., :common]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_in_half_precision(dtype: torch.dtype) -> None:
    attend_both_ways(attention_case(1, 2, 4, 5, 70, 64, dtype))


def test_attention_with_soft_cap_and_window() -> None:
    attend_both_ways(attention_case(2, 1, 2, 9, 70, 64, torch.float32, window=23), Softmax(softcap=2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 23])
def test_attention_with_sinks(dtype: torch.dtype, window: int | None) -> None:
    sinks = (2 + torch.randn(6, device=DEVICE)).to(dtype)
    case = attention_case(2, 3, 2, 9, 70, 64, dtype, window)
    attend_both_ways(case, Softmax(sinks=sinks))
    got, without = (sparse_attention(*case, softmax, "triton") for softmax in (Softmax(sinks=sinks), PLAIN))
    assert far(got, without) > 0.1, "negative control"


@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize(("asked", "kept", "window"), [(3, 70, None), (9, 700, None), (2, 300, 40)])
def test_keys_split_among_programs(
    asked: int, kept: int, window: int | None, sunk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few queries over many keys; queries that attend to nothing in a part, and to nothing at all."""
    from samkv_kernels.jit import sparse_attention as kernels

    monkeypatch.setattr(kernels, "LEAST_TILES", 0.1)
    monkeypatch.setattr(kernels, "MOST_SPLITS", 8)
    assert kernels.splits(2, kept, 32) == 8 and kernels.splits(256, kept, 32) == 1
    case = attention_case(2, 1, 2, asked, kept, 64, torch.float32, window)
    softmax = Softmax(sinks=torch.tensor([4.0, -1.0], device=DEVICE)) if sunk else PLAIN
    attend_both_ways(case, softmax)
    query, key, value, spans = case
    blind = Spans(spans.first, torch.where(torch.arange(asked, device=DEVICE) == 0, -1, spans.last).int())
    assert sparse_attention(query, key, value, blind, softmax, "triton")[:, :, 0].abs().max() == 0
    attend_both_ways((query, key, value, blind), softmax)


def test_a_window_that_is_missing_would_be_seen() -> None:
    """Negative control: the spans' first keys are used."""
    query, key, value, spans = attention_case(1, 1, 2, 9, 70, 64, torch.float32, window=3)
    boundless = Spans(torch.zeros_like(spans.first), spans.last)
    got = sparse_attention(query, key, value, boundless, backend="triton")
    assert far(got, sparse_attention(query, key, value, spans)) > 0.1


def test_keys_that_nobody_sees_weigh_nothing_whatever_they_are() -> None:
    query, key, value, _ = attention_case(1, 2, 2, 9, 200, 64, torch.float32)
    key[:, :, 21:], value[:, :, 21:] = torch.nan, torch.nan
    last = torch.arange(12, 21, dtype=torch.int32, device=DEVICE)[None]
    spans = Spans(torch.zeros_like(last), last)
    got = attention_shares(query, key, spans, backend="triton")
    assert got[..., 21:].abs().max() == 0
    assert far(got[..., :21], attention_shares(query, key[:, :, :21], spans)) < 1e-5
    want = sparse_attention(query, key[:, :, :21], value[:, :, :21], spans)
    assert far(sparse_attention(query, key, value, spans, backend="triton"), want) < 3 * TOLERANCE[torch.float32]


def test_queries_that_see_nothing_get_zeros() -> None:
    query, key, value, spans = attention_case(1, 1, 2, 3, 40, 64, torch.float32)
    first = torch.tensor([[0, 9, 0]], dtype=torch.int32, device=DEVICE)
    last = torch.tensor([[-1, 8, 39]], dtype=torch.int32, device=DEVICE)
    got = sparse_attention(query, key, value, Spans(first, last), backend="triton")
    assert got[:, :, :2].abs().max() == 0 and got[:, :, 2].abs().min() > 0
    assert attention_shares(query, key, Spans(first, last), backend="triton")[:, :2].abs().max() == 0


def test_what_the_device_cannot_read_is_refused() -> None:
    source = stored("model", 1, 1, 1, 64)
    at, angles = torch.zeros(1, dtype=torch.int32, device=DEVICE), turns(1, 32)
    strided: Any = replace(source, keys=source.keys.transpose(-1, -2).contiguous().transpose(-1, -2))
    with pytest.raises(ValueError, match="contiguous"):
        rope_gather(strided, at, angles, torch.float32, backend="triton")
    query, key, value, spans = attention_case(1, 1, 1, 1, 4, 64, torch.float32)
    with pytest.raises(ValueError, match="one dtype"):
        sparse_attention(query, key.half(), value, spans, backend="triton")


@pytest.mark.gpu
def test_blocks_are_read_from_pinned_memory() -> None:
    source = stored("bf16", 2, 3, 2, 64)
    host = Stored(source.keys.cpu().pin_memory(), source.values.cpu().pin_memory())
    at, angles = torch.tensor(ROWS, dtype=torch.int32, device=DEVICE), turns(len(ROWS), 32)
    got = rope_gather(host, at, angles, torch.bfloat16, backend="triton")
    want = rope_gather(source, at, angles, torch.bfloat16)
    assert max(far(mine, theirs) for mine, theirs in zip(got, want, strict=True)) < TOLERANCE[torch.bfloat16]
    with pytest.raises(ValueError, match="pin_memory"):
        rope_gather(Stored(source.keys.cpu(), source.values.cpu()), at, angles, torch.bfloat16, backend="triton")
