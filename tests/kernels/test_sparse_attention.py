"""The references of attention over spans against a softmax in float64, key by key, straight from the positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import Spans, attention_shares, sparse_attention
from tests.kernels import oracles
from tests.kernels.inputs import TOLERANCE, far

SMALL = st.integers(1, 3)


def kept_positions(batch: int, count: int, spread: int) -> Tensor:
    """Sorted positions `(batch, count)` with gaps."""
    return torch.stack([torch.randperm(spread)[:count].sort().values for _ in range(batch)])


@given(
    SMALL, SMALL, SMALL, st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.none() | st.integers(1, 12),
    st.none() | st.just(3.0), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_the_reference_attends_by_original_positions(
    batch: int, groups: int, rep: int, asked: int, kept: int, dim: int, window: int | None, softcap: float | None,
    sunk: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    query, key = torch.randn(batch, groups * rep, asked, dim), torch.randn(batch, groups, kept, dim)
    value, key_at = torch.randn(batch, groups, kept, dim), kept_positions(batch, kept, 3 * kept)
    query_at = torch.randint(0, 3 * kept, (batch, asked))
    spans = Spans.causal(query_at, key_at, window)
    sinks = torch.randn(groups * rep) if sunk else None
    softmax = Softmax(softcap=softcap, sinks=sinks)
    out, shares = oracles.attention(query, key, value, query_at, key_at, window, softcap, sinks)
    wrong = (sparse_attention(query, key, value, spans, softmax).double() - out).abs().max()
    assert wrong < TOLERANCE[torch.float32] * value.abs().max(), "relative to what is averaged: means may cancel"
    assert far(attention_shares(query, key, spans, softmax), shares) < TOLERANCE[torch.float32]


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 1, 3, 4)
    spans = Spans.causal(torch.tensor([[4]]), torch.tensor([[5, 6, 7]]))
    assert sparse_attention(query, key, key, spans).abs().max() == 0
    assert attention_shares(query, key, spans).abs().max() == 0


def test_requests_packed_behind_each_other_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    lengths, query, key = [3, 5], torch.randn(1, 2, 8, 4), torch.randn(1, 1, 8, 4)
    own = torch.cat([torch.arange(length) for length in lengths])
    start = torch.repeat_interleave(torch.tensor([0, 3]), torch.tensor(lengths))
    packed = sparse_attention(query, key, key, Spans(start[None].int(), (start + own)[None].int()))
    for begin, end in ((0, 3), (3, 8)):
        at = torch.arange(end - begin)[None]
        alone = sparse_attention(
            query[:, :, begin:end], key[:, :, begin:end], key[:, :, begin:end], Spans.causal(at, at)
        )
        assert far(packed[:, :, begin:end], alone) < TOLERANCE[torch.float32]


def test_positions_that_count_slots_would_be_seen() -> None:
    """Negative control: with a window, gaps matter."""
    torch.manual_seed(0)
    query, key, at = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8), torch.tensor([[0, 5, 6, 20]])
    counted = torch.arange(4)[None]
    want, _ = oracles.attention(query, key, key, at, at, 3, None)
    assert far(sparse_attention(query, key, key, Spans.causal(counted, counted, 3)), want) > 0.01


def test_the_scale_is_the_callers() -> None:
    query, key, at = torch.zeros(1, 1, 1, 4) + 1, torch.tensor([[[[0.0] * 4, [1.0] * 4]]]), torch.tensor([[0, 1]])
    shares = attention_shares(query, key, Spans.causal(at[:, 1:], at), Softmax(scale=0.5))
    assert float(shares[0, 0, 1]) == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_sink_takes_attention_and_gives_nothing() -> None:
    query, key, at = torch.zeros(1, 2, 1, 4), torch.ones(1, 1, 2, 4), torch.tensor([[0, 1]])
    spans, softmax = Spans.causal(at[:, 1:], at), Softmax(sinks=torch.tensor([0.0, math.log(2)]))
    assert sparse_attention(query, key, key, spans, softmax)[0, :, 0, 0].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert float(attention_shares(query, key, spans, softmax).sum()) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    at = torch.arange(3)[None]
    with pytest.raises(ValueError, match="evenly"):
        sparse_attention(torch.ones(1, 3, 3, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), Spans.causal(at, at))
    with pytest.raises(ValueError, match="spans"):
        attention_shares(torch.ones(1, 2, 2, 4), torch.ones(1, 2, 3, 4), Spans.causal(at, at))
