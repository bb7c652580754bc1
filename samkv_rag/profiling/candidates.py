"""Which sets of layers are worth trying, and which of those tried is to be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TypeVar

from samkv_rag.methods import SamKV
from samkv_rag.profiling.answers import Left

MOST = 4
FEWEST = 8
"""With fewer questions nothing is concluded."""
ROUNDING = 0.01
"""Nats that say nothing: what lies between two equally good values where nothing is lost."""
K = TypeVar("K")
Layers = tuple[int, ...]


def candidates(depth: int, agreement: Callable[[Layers], float], known: Sequence[Layers]) -> list[Layers]:
    """About ten sets of layers of a model with `depth` of them: those that agree best with full attention, of one layer
    to `MOST`, some that do not depend on a look, and those `known` for the model, being in force."""
    middle, now = SamKV().selection_layers(depth), [SamKV().selection_layers(depth, layers) for layers in known]
    even = tuple(sorted({(part + 1) * depth // MOST - 1 for part in range(MOST)} - {-1}))
    upper = tuple(range(depth // 2, depth))
    return list(dict.fromkeys([*_growing(depth, agreement), even, middle, upper, tuple(range(depth)), *now]))


def _growing(depth: int, agreement: Callable[[Layers], float]) -> list[Layers]:
    """The best layer, then that with the one that goes best with it, and so on."""
    sets: list[Layers] = [()]
    while len(sets) <= min(MOST, depth):
        wider = [tuple(sorted({*sets[-1], layer})) for layer in range(depth) if layer not in sets[-1]]
        if not wider:
            break
        sets.append(max(wider, key=agreement))
    return sets[1:]


def without_one(layers: Layers) -> list[Layers]:
    """What is left of a small set without each of its layers in turn."""
    if not 1 < len(layers) <= MOST:
        return []
    return [tuple(other for other in layers if other != layer) for layer in layers]


def cheapest(now: Layers, left: Mapping[Layers, Sequence[Left]]) -> Layers:
    """The cheapest of the sets that are as good as the best: the one whose last layer is lowest, as the question's
    first pass ends there, and then the smallest; the one in force `now` where the questions do not tell them apart.
    `left` is what each leaves, question by question."""
    if not tells(left):
        return now
    return min(as_good(left), key=lambda layers: (layers[-1], len(layers), _loss(left[layers])))


def least(now: float, left: Mapping[float, Sequence[Left]]) -> float:
    """The smallest value that is as good as the best; but where even the smallest of all is, and nothing says what too
    little would be, the one in force `now`, if it is as good."""
    return kept_or_best(now, left) if min(left) in (good := as_good(left)) else min(good)


def kept_or_best(now: K, left: Mapping[K, Sequence[Left]]) -> K:
    """What is in force `now`, unless it leaves less than the best one; then the one that loses least."""
    good = as_good(left)
    return now if now in good else min(good, key=lambda one: _loss(left[one]))


def tells(left: Mapping[K, Sequence[Left]]) -> bool:
    """Whether the questions tell these apart: one leaves less than the best."""
    return len(as_good(left)) < len(left)


def as_good(left: Mapping[K, Sequence[Left]]) -> list[K]:
    """Those that leave as much of full prefill's answers as the one that leaves most: all of them, as far as fewer than
    `FEWEST` questions can tell.

    As much: no fewer identical answers, and the mean of the differences in loss is within its standard error. The error
    alone would not do: a set that loses one question more, and wholly, differs by one standard error.
    """
    same = {one: sum(part.same for part in found) for one, found in left.items()}
    best = min(left, key=lambda one: (_loss(left[one]), -same[one]))
    if len(left[best]) < FEWEST:
        return list(left)
    return [one for one in left if same[one] >= same[best] and not _clearly_above(left[one], left[best])]


def _loss(found: Sequence[Left]) -> float:
    return fmean(part.loss for part in found)


def _clearly_above(some: Sequence[Left], others: Sequence[Left]) -> bool:
    gaps = [a.loss - b.loss for a, b in zip(some, others, strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return fmean(gaps) > max(error, ROUNDING)
