"""Intervals against brute force and against a distribution that is known exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from samkv_rag.eval.statistics import DRAWS, _resamples, estimates


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.0], [1.0, 2.0, 4.0, 8.0], [3.0, 3.0, 1.0, 0.0, 7.0]])
def test_resampled_means_have_the_distribution_of_all_resamples(values: list[float]) -> None:
    """Brute force: every one of the n^n resamples; the sampled distribution function is nowhere far from theirs."""
    n = len(values)
    exact = np.array([np.mean(sample) for sample in itertools.product(values, repeat=n)])
    drawn = _resamples(n) @ np.array(values) / n
    points = np.unique(np.round(exact, 9)) + 1e-6
    apart = [abs((drawn <= x).mean() - (exact <= x).mean()) for x in points]
    assert max(apart) < 1.95 / np.sqrt(DRAWS), "Kolmogorov and Smirnov: a thousandth of all samples lie further off"


@pytest.mark.parametrize(("n", "right"), [(50, 10), (400, 300), (1000, 20)])
def test_the_interval_of_a_share_is_the_binomials(n: int, right: int) -> None:
    """The mean of a resample of zeros and ones is binomial: its quantiles are known."""
    from scipy.stats import binom

    column = np.zeros((n, 1))
    column[:right] = 1
    (found,) = estimates(column)
    low, high = binom.ppf([0.025, 0.975], n, right / n) / n
    assert found.value == right / n and found.n == n
    assert abs(found.low - low) <= 2 / n and abs(found.high - high) <= 2 / n


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(0, 1)))
def test_every_interval_holds_its_mean_and_stays_within_the_data(columns: np.ndarray) -> None:
    for number, found in enumerate(estimates(columns)):
        own = columns[:, number]
        assert own.min() - 1e-9 <= found.low <= found.high <= own.max() + 1e-9
        assert abs(found.value - own.mean()) < 1e-12
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9 or len(own) < 8


def test_pairing_is_kept() -> None:
    """Equal columns differ by nothing at all, though each alone is uncertain; unpaired resampling would not show it."""
    answers = np.random.default_rng(3).integers(0, 2, 200).astype(float)
    alone, difference = estimates(np.stack([answers, answers - answers], 1))
    assert alone.high - alone.low > 0.1
    assert (difference.low, difference.high) == (0, 0)
    other = np.random.default_rng(4).permutation(answers)
    (apart,) = estimates((answers - other)[:, None])
    assert apart.high - apart.low > 0.1


def test_the_same_numbers_give_the_same_intervals() -> None:
    column = np.random.default_rng(0).random((77, 1))
    first = estimates(column)
    _resamples.cache_clear()
    assert estimates(column) == first


def test_no_questions_have_no_mean() -> None:
    (found,) = estimates(np.zeros((0, 1)))
    assert found.n == 0 and np.isnan(found.value)
