"""Attention in pieces against the fp32 reference: whatever a query attends to, however rows fall into pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_kernels import piecewise
from samkv_kernels.piecewise import pieces_of, piecewise_attention, piecewise_shares
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans, attention_shares, sparse_attention
from tests.counting import counted
from tests.kernels.inputs import TOLERANCE, far


def drawn(batch: int, groups: int, shared: int, asked: int, kept: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value; keys and values are part of larger buffers, as caches give them."""
    query = torch.randn(batch, groups * shared, asked, dim)
    key, value = (torch.full((batch, groups, kept + 3, dim), torch.nan) for _ in range(2))
    for buffer in (key, value):
        buffer[:, :, :kept] = torch.randn(batch, groups, kept, dim)
    return query, key[:, :, :kept], value[:, :, :kept]


@given(
    st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 7]), st.integers(1, 9), st.integers(1, 12),
    st.sampled_from([2, 6]), st.none() | st.just(3.0), st.sampled_from([1, 3, 192]), st.sampled_from([0, 1 << 20]),
    st.sampled_from([0, 9, 1 << 20]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_pieces_are_sparse_attention(
    batch: int, groups: int, shared: int, asked: int, kept: int, dim: int, softcap: float | None, rows: int,
    small: int, waste: int, sunk: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    query, key, value = drawn(batch, groups, shared, asked, kept, dim)
    first = torch.randint(0, kept, (batch, asked), dtype=torch.int32)
    last = torch.randint(-1, kept, (batch, asked), dtype=torch.int32)  # some attend to nothing
    spans, softmax = Spans(first, last), Softmax(None, softcap, torch.randn(groups * shared) if sunk else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piecewise, "ROWS", rows)
        patch.setattr(piecewise, "SMALL", small)
        patch.setattr(piecewise, "WASTE", waste)
        made = torch.zeros(batch, asked, kept)
        found = piecewise_attention(query, key, value, pieces_of(spans, shared), softmax, made)
        shares = piecewise_shares(query, key, spans, softmax)
        patch.setattr(piecewise, "_is_fused", lambda dtype: True)  # as with AMX
        patch.setattr(piecewise, "FUSED", 1)
        fused = piecewise_attention(query, key, value, pieces_of(spans, shared), softmax)
    expected = sparse_attention(query, key, value, spans, softmax)
    for way in (found, fused):
        assert (way - expected).abs().max() < TOLERANCE[torch.float32] * value.abs().max()
    reference = attention_shares(query, key, spans, softmax)
    assert max((each - reference).abs().max() for each in (shares, made)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("values", [3, 11])
def test_values_may_be_of_another_width_than_keys(values: int) -> None:
    torch.manual_seed(0)
    query, key, _ = drawn(1, 2, 3, 40, 60, 7)
    value, spans = torch.randn(1, 2, 60, values), Spans.causal(torch.arange(20, 60)[None], torch.arange(60)[None])
    found = piecewise_attention(query, key, value, pieces_of(spans, 3))
    expected = sparse_attention(query, key, value, spans)
    assert found.shape[-1] == values and (found - expected).abs().max() < TOLERANCE[torch.float32] * value.abs().max()
    first = sparse_attention(query, key, value[..., :2], spans)
    assert (expected[..., :2] - first).abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [None, 100])
def test_every_dtype_stays_within_its_precision(dtype: torch.dtype, sunk: bool, window: int | None) -> None:
    torch.manual_seed(0)
    softmax = Softmax(sinks=(torch.randn(8) + 3).to(dtype) if sunk else None)
    query, key, value = (x.to(dtype) for x in drawn(1, 2, 4, 150, 400, 32))
    spans = Spans.causal(torch.arange(250, 400)[None], torch.arange(400)[None], window)
    expected = sparse_attention(query.float(), key.float(), value.float(), spans, softmax)
    made = torch.zeros(1, 150, 400)
    found = piecewise_attention(query, key, value, pieces_of(spans, 4), softmax, made)
    assert found.dtype == dtype and far(found.float(), expected) < TOLERANCE[dtype]
    for shares in (piecewise_shares(query, key, spans, softmax), made):
        assert far(shares, attention_shares(query.float(), key.float(), spans, softmax)) < TOLERANCE[dtype]
    other = pieces_of(Spans(spans.first, spans.last - 1), 4)
    assert far(piecewise_attention(query, key, value, other, softmax).float(), expected) > TOLERANCE[dtype]


def test_requests_share_one_list_of_pieces() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(3, 2, 2, 5, 9, 4)
    spans = Spans.causal(torch.arange(4, 9)[None], torch.arange(9)[None])
    found = piecewise_attention(query, key, value, pieces_of(spans, 2), Softmax(0.3))
    every = Spans(spans.first.expand(3, -1), spans.last.expand(3, -1))
    assert far(found, sparse_attention(query, key, value, every, Softmax(0.3))) < TOLERANCE[torch.float32]


def test_a_piece_reads_no_key_that_none_of_its_queries_sees() -> None:
    spans = Spans.causal(torch.arange(600)[None], torch.arange(600)[None], window=50)
    (pieces,) = pieces_of(spans, 2)
    assert [piece.rows.start for piece in pieces] == list(range(0, 600, 96))
    assert all(
        piece.keys.stop == piece.rows.stop and piece.keys.start == max(0, piece.rows.start - 49) for piece in pieces
    )


def test_what_begins_a_prompt_and_what_ends_it_are_apart() -> None:
    asked = torch.cat([torch.arange(8), torch.arange(4000, 4040)])
    (pieces,) = pieces_of(Spans.causal(asked[None], torch.arange(4040)[None]), 3)
    assert [(piece.rows.stop, piece.keys.stop) for piece in pieces] == [(8, 8), (48, 4040)]
    (near,) = pieces_of(Spans.causal(asked[None].clamp(max=300), torch.arange(301)[None]), 3)
    assert len(near) == 1, "one more piece would take longer than what it saves"


@pytest.mark.parametrize(("fused", "dim"), [(False, 4), (True, 4), (True, 65)])
def test_pieces_are_sdpas_where_that_is_faster_and_no_weights_are_wanted(
    fused: bool, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piecewise, "_is_fused", lambda dtype: fused)
    calls = counted(monkeypatch, piecewise, "_attend_fused")
    query, key, value = drawn(1, 2, 3, 35, 39, dim)
    pieces = pieces_of(Spans.causal(torch.arange(4, 39)[None], torch.arange(39)[None]), 3)
    for softmax, shares in ((Softmax(), None), (Softmax(), torch.zeros(1, 35, 39)), (Softmax(softcap=2.0), None)):
        piecewise_attention(query, key, value, pieces, softmax, shares)
    piecewise_attention(query, key, value[..., :3], pieces)
    few = pieces_of(Spans.causal(torch.arange(8, 39)[None], torch.arange(39)[None]), 3)
    piecewise_attention(query[:, :, :31], key, value, few)
    assert len(calls) == (fused and dim == 4)
    piecewise_attention(query[:, :, :1], key, value, [[piecewise.Piece.open(1, 39)]])
    assert len(calls) == fused * (1 + (dim == 4)), "a step of decoding is always SDPA's"


def test_bfloat16_is_left_to_sdpa_where_the_cpu_has_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, fused in (({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)):
        piecewise._has_amx.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert piecewise.fused_is_faster(torch.bfloat16) == fused
        assert piecewise.fused_is_faster(torch.float32) and not piecewise.fused_is_faster(torch.float16)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    piecewise._has_amx.cache_clear()
    assert not piecewise.fused_is_faster(torch.bfloat16), "an older torch does not tell"
    piecewise._has_amx.cache_clear()
