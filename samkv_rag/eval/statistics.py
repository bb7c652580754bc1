"""Means with 95 % bootstrap intervals over questions; seeded, so that the same records give the same text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
SEED = 0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions and the ends of its 95 % percentile interval."""

    value: float
    low: float
    high: float
    n: int


def estimates(columns: Array) -> list[Estimate]:
    """One estimate for each column of `(questions, m)`; all columns share the same resamples. No question: NaN."""
    n = len(columns)
    if n == 0:
        return [Estimate(float("nan"), float("nan"), float("nan"), 0)] * columns.shape[1]
    means = _resamples(n) @ columns / n
    lows, highs = np.percentile(means, [2.5, 97.5], axis=0)
    parts = zip(columns.mean(0), lows, highs, strict=True)
    return [Estimate(float(value), float(low), float(high), n) for value, low, high in parts]


@lru_cache(maxsize=8)
def _resamples(n: int) -> Array:
    """How often each of `n` questions is drawn, in `DRAWS` draws of n with replacement: `(DRAWS, n)`."""
    drawn = np.random.default_rng(SEED).integers(0, n, (DRAWS, n))
    flat = drawn + n * np.arange(DRAWS)[:, None]
    return np.bincount(flat.ravel(), minlength=DRAWS * n).reshape(DRAWS, n).astype(np.float64)
