"""From many questions to a model's selection layers: every layer alone, then more while they help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.methods import SamKV
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.store import ChunkKVStore
from samkv_rag.store.profiles import ModelProfile

ENOUGH = 10
MOST = 4
Layers = tuple[int, ...]
Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Tried:
    """Means over the questions: `agreement` of the choice with full attention, and the share of the `answers` kept
    (None where no question's answer stands in its chunks)."""

    layers: Layers
    agreement: float
    answers: float | None


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The `chosen` layers, what decided (`by`: "answers" or "agreement"), over how many questions, and all that was
    tried: every layer alone, all together, the middle third, the chosen ones."""

    chosen: Layers
    by: str
    questions: int
    with_answers: int
    keep: float
    tried: tuple[Tried, ...]

    def as_profile(self) -> ModelProfile:
        """What a store keeps of it."""
        rows = [{"layers": list(t.layers), "agreement": t.agreement, "answers": t.answers} for t in self.tried]
        facts = {"by": self.by, "questions": self.questions, "with_answers": self.with_answers, "keep": self.keep}
        return ModelProfile(self.chosen, {**facts, "tried": rows})


def profile(
    engine: SamKVEngine, items: Iterable[Item], keep: float = 0.15, progress: Progress = lambda: None
) -> LayerProfile:
    """Measure on `items` which layers should choose blocks; `progress` is called after each of them.

    A set of layers is good when it keeps the answers' tokens (where `ENOUGH` questions have theirs in their chunks), or
    else when it agrees with full attention; both as `Looked` defines them. Each question's chunks are computed
    into a store of their own, which ends with it. Raises `SamKVError` when there are no questions.
    """
    looked = list(_looked(engine, items, keep, progress))
    if not looked:
        raise SamKVError("There are no questions with passages to measure on; give others with --data.")
    with_answers = [one for one in looked if one.spots]
    by = "answers" if len(with_answers) >= ENOUGH else "agreement"
    depth = engine.adapter.shape.layers
    chosen = choose_layers(depth, _measure(with_answers if by == "answers" else looked, by))
    alone = [(layer,) for layer in range(depth)]
    sets = dict.fromkeys([*alone, tuple(range(depth)), SamKV().selection_layers(depth), chosen])
    tried = tuple(_tried(looked, layers) for layers in sets)
    return LayerProfile(chosen, by, len(looked), len(with_answers), keep, tried)


def _looked(engine: SamKVEngine, items: Iterable[Item], keep: float, progress: Progress) -> Iterable[Looked]:
    for item in items:
        with SamKVEngine(engine.source, ChunkKVStore()) as own:
            if own.precompute(item.chunks):
                yield look(own, item, keep)
        progress()


def _measure(looked: Sequence[Looked], by: str) -> Callable[[Layers], list[float]]:
    def values(layers: Layers) -> list[float]:
        return [(one.answers(layers) or 0.0) if by == "answers" else one.agreement(layers) for one in looked]

    return values


def choose_layers(depth: int, values: Callable[[Layers], list[float]]) -> Layers:
    """The lowest layer that is as good as the best one, then others while they help, at most `MOST`.

    `values(layers)` are one number a question, larger is better. Good as: the mean of the differences is within their
    standard error. Helping: it is more than that above. Few and low layers are cheaper: the question's pass ends at the
    last.
    """
    alone = {layer: values((layer,)) for layer in range(depth)}
    best = max(alone, key=lambda layer: fmean(alone[layer]))
    first = next(layer for layer in range(depth) if not _clearly_above(alone[best], alone[layer]))
    chosen: Layers = (first,)
    value = alone[first]
    while len(chosen) < min(MOST, depth):
        wider = [tuple(sorted({*chosen, layer})) for layer in range(depth) if layer not in chosen]
        tried = {layers: values(layers) for layers in wider}
        next_best = max(tried, key=lambda layers: fmean(tried[layers]))
        if not _clearly_above(tried[next_best], value):
            break
        chosen, value = next_best, tried[next_best]
    return chosen


def _clearly_above(left: Sequence[float], right: Sequence[float]) -> bool:
    gaps = [a - b for a, b in zip(left, right, strict=True)]
    error = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return fmean(gaps) > error


def _tried(looked: Sequence[Looked], layers: Layers) -> Tried:
    answers = [share for one in looked if (share := one.answers(layers)) is not None]
    return Tried(layers, fmean(one.agreement(layers) for one in looked), fmean(answers) if answers else None)
