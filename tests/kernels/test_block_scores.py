"""The references of the block scores against products in float64, and against every corner of a block's box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samkv_kernels.block_scores import block_logits, block_scores, bound_logits
from tests.kernels import oracles
from tests.kernels.inputs import TOLERANCE, far

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=3)
SMALL = st.integers(1, 3)


@given(COUNTS, SMALL, SMALL, SMALL, SMALL, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_logits_and_scores_are_those_of_the_oracle(
    counts: list[int], layers: int, groups: int, rep: int, asked: int, dim: int
) -> None:
    torch.manual_seed(sum(counts) + dim)
    query = torch.randn(len(counts), layers, groups * rep, asked, dim)
    mean = torch.randn(layers, sum(counts), groups, dim)
    want = oracles.logits(query, mean, counts, [head // rep for head in range(groups * rep)])
    assert far(block_logits(query, mean, counts), want) < TOLERANCE[torch.float32]
    pooled = block_scores(query[:, :, :, 0], mean, counts)
    # Sums of terms that cancel: compared in the terms' own size, not in that of the sum.
    assert bool((pooled - want[:, :, 0].mean(1)).abs().le(2e-6 * (1 + want[:, :, 0].abs().mean(1))).all())


def test_interleaved_head_groups_would_give_other_scores() -> None:
    """The control of the test above: the grouping order of GQA matters."""
    torch.manual_seed(0)
    query, mean = torch.randn(1, 1, 4, 1, 8), torch.randn(1, 5, 2, 8)
    assert far(block_logits(query, mean, [5]), oracles.logits(query, mean, [5], [0, 1, 0, 1])) > 0.01


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_bound_is_reached_at_a_corner_of_the_box_and_nowhere_exceeded(dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    query, ends = torch.randn(1, 1, 1, 1, dim), torch.randn(2, 1, 1, 1, dim)
    low, high = ends.amin(0), ends.amax(0)
    want = oracles.highest_logit(query.flatten(), low.flatten(), high.flatten())
    assert float(bound_logits(query, low, high, [1])) == pytest.approx(want, abs=1e-5)
    inside = low + (high - low) * torch.rand(20, 1, 1, dim)
    assert float((inside.flatten(1) @ query.flatten()).max()) / math.sqrt(dim) <= want + 1e-5


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        block_logits(torch.randn(2, 1, 2, 1, 4), torch.randn(1, 5, 2, 4), [2, 2])
    with pytest.raises(ValueError, match="evenly"):
        block_logits(torch.randn(1, 1, 3, 1, 4), torch.randn(1, 5, 2, 4), [5])
