"""Which sets of layers are worth trying, and which of those that were tried is to be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from samkv_rag.methods import SamKV

MOST = 4
Layers = tuple[int, ...]


def candidates(depth: int, agreement: Callable[[Layers], float], in_force: Layers | None) -> list[Layers]:
    """About ten sets of layers of a model with `depth` of them: those that agree best with full attention, one layer
    to `MOST`, and some that do not depend on a look, among them what is `in_force` now (None: the middle third)."""
    middle, now = SamKV().selection_layers(depth), SamKV().selection_layers(depth, in_force)
    even = tuple(sorted({(part + 1) * depth // MOST - 1 for part in range(MOST)} - {-1}))
    upper = tuple(range(depth // 2, depth))
    return list(dict.fromkeys([*_growing(depth, agreement), even, middle, upper, tuple(range(depth)), now]))


def _growing(depth: int, agreement: Callable[[Layers], float]) -> list[Layers]:
    """The best layer, that and the one with which it is best, and so on."""
    sets: list[Layers] = [()]
    while len(sets) <= min(MOST, depth):
        wider = [tuple(sorted({*sets[-1], layer})) for layer in range(depth) if layer not in sets[-1]]
        if not wider:
            break
        sets.append(max(wider, key=agreement))
    return sets[1:]


def without_one(layers: Layers) -> list[Layers]:
    """What is left of a small set without each of its layers."""
    if not 1 < len(layers) <= MOST:
        return []
    return [tuple(other for other in layers if other != layer) for layer in layers]


def cheapest(losses: Mapping[Layers, Sequence[float]]) -> Layers:
    """Of the sets that lose as little as the best one, the cheapest: whose last layer is lowest, as the question's
    first pass ends there, and then the smallest. `losses` are one number a question, smaller is better.

    As little: the mean of the differences is within its standard error.
    """
    mean = {layers: fmean(values) for layers, values in losses.items()}
    least = losses[min(mean, key=mean.__getitem__)]
    good = [layers for layers, values in losses.items() if not _clearly_above(values, least)]
    return min(good, key=lambda layers: (layers[-1], len(layers), mean[layers]))


def _clearly_above(left: Sequence[float], right: Sequence[float]) -> bool:
    gaps = [a - b for a, b in zip(left, right, strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return fmean(gaps) > error
