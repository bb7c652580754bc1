"""Which sets of layers are worth trying, and which of those that were tried is to be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from samkv_rag.methods import SamKV
from samkv_rag.profiling.answers import Left

MOST = 4
Layers = tuple[int, ...]


def candidates(depth: int, agreement: Callable[[Layers], float], known: Sequence[Layers]) -> list[Layers]:
    """About ten sets of layers of a model with `depth` of them: those that agree best with full attention, one layer
    to `MOST`, some that do not depend on a look, and those that are `known` of the model, being in force."""
    middle, now = SamKV().selection_layers(depth), [SamKV().selection_layers(depth, layers) for layers in known]
    even = tuple(sorted({(part + 1) * depth // MOST - 1 for part in range(MOST)} - {-1}))
    upper = tuple(range(depth // 2, depth))
    return list(dict.fromkeys([*_growing(depth, agreement), even, middle, upper, tuple(range(depth)), *now]))


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


def cheapest(left: Mapping[Layers, Sequence[Left]]) -> Layers:
    """Of the sets that leave as much as the best one, the cheapest: whose last layer is lowest, as the question's first
    pass ends there, and then the smallest. `left` is what each leaves, question by question.

    As much: no fewer of the same answers, and the mean of the differences in loss is within its standard error. The
    error alone would not do: who loses one question more, and that wholly, differs by one standard error.
    """
    loss = {layers: fmean(one.loss for one in found) for layers, found in left.items()}
    same = {layers: sum(one.same for one in found) for layers, found in left.items()}
    best = min(left, key=lambda layers: (loss[layers], -same[layers]))
    good = [
        layers for layers, found in left.items() if same[layers] >= same[best] and not _clearly_above(found, left[best])
    ]
    return min(good, key=lambda layers: (layers[-1], len(layers), loss[layers]))


def _clearly_above(some: Sequence[Left], others: Sequence[Left]) -> bool:
    gaps = [a.loss - b.loss for a, b in zip(some, others, strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return fmean(gaps) > error
