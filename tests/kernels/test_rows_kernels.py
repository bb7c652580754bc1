"""The kernels for rows with caches of their own against their references; see `test_kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from samkv_kernels.packed import Packed
from samkv_kernels.rows_attention import (
    Caches,
    PackedPlaces,
    PackedRows,
    Places,
    packed_place,
    place,
    put_rows,
    rows_attention,
)
from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans, sparse_attention
from tests.kernels.inputs import DEVICE, NEEDS, TOLERANCE, far, poisoned

pytestmark = NEEDS


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned():
        yield


def caches_of(lengths: list[int], groups: int, dim: int, dtype: torch.dtype) -> Caches:
    """The cache of every row, in memory of its own, one of several layers."""
    made = [[torch.randn(3, groups, n, dim, device=DEVICE).to(dtype) for n in lengths] for _ in "kv"]
    return Caches.of(*([x[layer : layer + 1] for x in each] for layer, each in enumerate(made, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "rep", "dim", "softmax"),
    [([1], 1, 64, PLAIN), ([300, 3, 70], 4, 64, PLAIN), ([40, 41], 7, 96, Softmax(softcap=2.0))],
)  # fmt: skip
def test_rows_with_caches_of_their_own(
    lengths: list[int], rep: int, dim: int, softmax: Softmax, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new token is put at its slot and nowhere else, and attends to what precedes it, not to the room."""
    from samkv_kernels.jit import sparse_attention as kernels

    monkeypatch.setattr(kernels, "LEAST_TILES", 0.1)
    rows, caches = len(lengths), caches_of(lengths, 2, dim, dtype)
    slots = torch.tensor([length // 2 for length in lengths], device=DEVICE)
    for x in (*caches.keys, *caches.values):
        x[:, :, x.shape[2] // 2 :] = 99.0
    query, key, value = (torch.randn(rows, n, 1, dim, device=DEVICE).to(dtype) for n in (2 * rep, 2, 2))
    spans, seen = Spans(torch.zeros_like(slots).int()[:, None], slots.int()[:, None]), []
    for backend in ("torch", "triton"):
        own = Caches.of(*([x.clone() for x in each] for each in (caches.keys, caches.values)))
        put_rows(own, slots, key.transpose(2, 3).contiguous().transpose(2, 3), value, backend)
        seen.append((rows_attention(query, own, spans, softmax, backend), own))
    (want, left), (got, right) = seen
    assert far(got, want) < 3 * TOLERANCE[dtype]
    for mine, theirs in zip((*right.keys, *right.values), (*left.keys, *left.values), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    for row, length in enumerate(lengths):
        cut = slice(row, row + 1)
        pair = (x[row][:, :, : length // 2 + 1] for x in (left.keys, left.values))
        alone = sparse_attention(query[cut], *pair, Spans(spans.first[cut], spans.last[cut]), softmax)
        assert far(want[cut], alone) < TOLERANCE[dtype]


def test_kernels_go_by_the_table_alone() -> None:
    """The table is rewritten for other caches, beside a cache of one slot that has a row, too, and is full of NaN."""
    spare = [torch.full((1, 2, 1, 64), torch.nan, device=DEVICE) for _ in "kv"]
    table = torch.zeros(3, 4, dtype=torch.long, device=DEVICE)
    bare = Caches([], [], Places(*spare, table, 16, 512))
    for lengths in ([40, 7], [3, 150]):
        caches = caches_of(lengths, 2, 64, torch.float32)
        pairs = [*zip(caches.keys, caches.values, strict=True), spare]
        table.copy_(torch.tensor([place(*pair, *spare) for pair in pairs]))
        own = Caches.of(*([x.clone() for x in each] for each in zip(*pairs, strict=True)))
        slots = torch.tensor([*(length - 1 for length in lengths), 0], device=DEVICE)
        query, key, value = (torch.randn(3, heads, 1, 64, device=DEVICE) for heads in (8, 2, 2))
        spans = Spans(torch.zeros_like(slots).int()[:, None], slots.int()[:, None])
        put_rows(own, slots, key, value)
        put_rows(bare, slots, key, value, "triton")
        for mine, theirs in zip((*caches.keys, spare[0]), own.keys, strict=True):
            assert torch.equal(mine, theirs)
        got = rows_attention(query, bare, spans, backend="triton")
        assert far(got, rows_attention(query, own, spans)) < TOLERANCE[torch.float32]


def packed_of(tokens: list[int], groups: int, dim: int) -> list[Packed | None]:
    """The packed entries of every row, None where there are no tokens."""
    return [Packed.of(*torch.randn(2, groups, n, dim, device=DEVICE)) if n else None for n in tokens]


def spans_of(pairs: list[tuple[int, int]]) -> Spans:
    first, last = torch.tensor(pairs, dtype=torch.int32, device=DEVICE).T[..., None]
    return Spans(first, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("spans", "rep", "dim", "softmax"),
    [
        ([(0, 0)], 1, 64, PLAIN),  # one token
        ([(0, 699), (0, -1), (40, 69)], 4, 128, PLAIN),  # nothing packed in one row, a window in another
        ([(64, 95), (3, 40), (31, 32)], 7, 96, Softmax(softcap=2.0)),
        ([(5, 4), (0, 130)], 2, 20, Softmax(sinks=torch.tensor([1.0, -1.0, 0.5, 3.0]))),  # attends to none
        ([(0, 99)], 16, 256, Softmax(scale=0.02)),
    ],
)
def test_rows_see_what_they_hold_packed(
    spans: list[tuple[int, int]], rep: int, dim: int, softmax: Softmax, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Beside what is unpacked, split among programs or not."""
    from samkv_kernels.jit import sparse_attention as kernels

    if softmax.sinks is not None:
        softmax = replace(softmax, sinks=softmax.sinks.to(DEVICE))
    tokens = [last + 1 for _, last in spans]
    caches, layers = caches_of([40, 3, 17][: len(spans)], 2, dim, dtype), packed_of(tokens, 2, dim)
    query = torch.randn(len(spans), 2 * rep, 1, dim, device=DEVICE).to(dtype)
    live = spans_of([(0, keys.shape[2] - 1) for keys in caches.keys])
    packed = PackedRows.of(layers, spans_of(spans))
    want = rows_attention(query, caches, live, softmax, "torch", packed)
    without = rows_attention(query, caches, live, softmax)
    for least in (4, 0.1):
        monkeypatch.setattr(kernels, "LEAST_TILES", least)
        got = rows_attention(query, caches, live, softmax, "triton", packed)
        assert got.dtype == dtype and far(got, want) < 3 * TOLERANCE[dtype]
    for row, (first, last) in enumerate(spans):
        assert (far(want[row], without[row]) < TOLERANCE[dtype]) == (last < first)


@pytest.mark.parametrize("window", [None, 40, 3])
def test_several_tokens_of_a_row_see_what_it_holds_packed(window: int | None) -> None:
    """With a window, each its own part of it, and the later ones none."""
    layers, caches = packed_of([50, 90], 2, 64), caches_of([9, 5], 2, 64, torch.float32)
    at = torch.stack([torch.arange(n, n + 3) for n in (52, 95)]).to(DEVICE)
    positions = torch.full((2, 90), 999, device=DEVICE)
    positions[0, :50], positions[1] = torch.arange(50), torch.arange(90)
    packed = PackedRows.of(layers, Spans.causal(at, positions, window))
    live = spans_of([(0, 8), (0, 4)])
    live = Spans(live.first.expand(2, 3), live.last.expand(2, 3))
    query = torch.randn(2, 8, 3, 64, device=DEVICE)
    got, want = (rows_attention(query, caches, live, PLAIN, way, packed) for way in ("triton", "torch"))
    assert far(got, want) < 3 * TOLERANCE[torch.float32]


def test_kernels_go_by_the_packed_table_alone() -> None:
    """The table is rewritten for other rows; an empty one has spans of an earlier answer, and attends to nothing."""
    codes, steps = torch.zeros(1, dtype=torch.uint8, device=DEVICE), torch.zeros(1, dtype=torch.half, device=DEVICE)
    table = torch.zeros(3, 8, dtype=torch.long, device=DEVICE)
    places = PackedPlaces(codes, steps, table, 16, 512)
    caches, slots = caches_of([30, 20, 1], 2, 64, torch.float32), spans_of([(0, 29), (0, 19), (0, 0)])
    for tokens in ([70, 300, 0], [0, 33, 0], [512, 0, 0]):
        layers = packed_of(tokens, 2, 64)
        lines = [[0] * 8 if layer is None else packed_place(layer, codes, steps) for layer in layers]
        table.copy_(torch.tensor(lines))
        seen, query = spans_of([(0, n - 1) if n else (7, 98) for n in tokens]), torch.randn(3, 8, 1, 64, device=DEVICE)
        got = rows_attention(query, caches, slots, PLAIN, "triton", PackedRows([], places, seen))
        want = rows_attention(query, caches, slots, PLAIN, "torch", PackedRows(layers, places, seen))
        assert far(got, want) < 3 * TOLERANCE[torch.float32]


def test_rows_whose_caches_are_unlike_are_refused() -> None:
    keys = [torch.zeros(1, 2, 4, dim, device=DEVICE) for dim in (32, 64)]
    with pytest.raises(ValueError, match="same heads"):
        Caches.of(keys, keys)
