"""The kernels for rows with caches of their own against their references; see `test_kernels`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from samkv_kernels.rows_attention import Caches, Places, place, put_rows, rows_attention
from samkv_kernels.softmax import PLAIN, Softmax
from samkv_kernels.sparse_attention import Spans, sparse_attention
from tests.kernels.inputs import DEVICE, NEEDS, TOLERANCE, far, poisoned

pytestmark = NEEDS


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with poisoned():
        yield


def caches_of(lengths: list[int], groups: int, dim: int, dtype: torch.dtype) -> Caches:
    """Of every row, in memory of its own, one of several layers."""
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
    """A new token is put at its slot and nowhere else, and attends to what stands before it, not to the room."""
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
    """It is written anew for other caches, beside a cache of one slot that has a row, too, and is full of NaN."""
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


def test_rows_whose_caches_are_unlike_are_refused() -> None:
    keys = [torch.zeros(1, 2, 4, dim, device=DEVICE) for dim in (32, 64)]
    with pytest.raises(ValueError, match="same heads"):
        Caches.of(keys, keys)
