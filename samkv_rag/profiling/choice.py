"""From many questions to a model's selection layers: sets of them are tried, and the one that answers as full prefill
does is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import NamedTuple

from samkv_rag.calls import check_length
from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.methods import SamKV
from samkv_rag.methods.samkv import WIDE
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.profiling.answers import ANSWER_TOKENS, Left, OwnAnswer, left_of, own_answer
from samkv_rag.profiling.asking import Asking, Measure, Progress
from samkv_rag.profiling.candidates import Layers, as_good, candidates, cheapest, without_one
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.store.profiles import ModelProfile
from samkv_rag.types import PromptPlan

KEEPS = (0.1, 0.15, 0.25, 0.5)
WIDTHS = (0.25, WIDE, 1.0)


class Setting(NamedTuple):
    """What a method is tried with: the selection `layers`, the share of all layers that are `wide`, what to `keep`."""

    layers: Layers
    wide: float
    keep: float


@dataclass(frozen=True, slots=True)
class Tried:
    """What a set of layers came to over the questions: the share with the `same` answer as full prefill, token by
    token; the mean `loss` of that answer's log-likelihood in nats, at most `WORST` a question; and the mean
    `agreement` of the first look with full attention."""

    layers: Layers
    same: float
    loss: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Width:
    """What the chosen layers come to when what is recomputed sees all entries on the share `wide` of all layers, from
    below: `same` and `loss` as above."""

    wide: float
    same: float
    loss: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What the chosen layers and width come to when the share `keep` of the chunk tokens is kept: `same` and `loss` as
    above."""

    keep: float
    same: float
    loss: float


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The `chosen` layers and share of layers that are `wide`, over how many `questions`, all sets of layers that were
    `tried` with the share `keep` kept, the chosen one with several `widths`, and all that is chosen at several
    `budgets`, both from the smallest on."""

    chosen: Layers
    wide: float
    questions: int
    keep: float
    tried: tuple[Tried, ...]
    widths: tuple[Width, ...]
    budgets: tuple[Budget, ...]

    def as_profile(self) -> ModelProfile:
        """What a store keeps of it."""
        measured = {
            "questions": self.questions,
            "keep": self.keep,
            "tried": [{**asdict(tried), "layers": list(tried.layers)} for tried in self.tried],
            "widths": [asdict(width) for width in self.widths],
            "budgets": [asdict(budget) for budget in self.budgets],
        }
        return ModelProfile(self.chosen, measured, self.wide)


def profile(
    engine: SamKVEngine, items: Iterable[Item], keep: float = 0.15, progress: Progress = lambda *_: None
) -> LayerProfile:
    """Measure on `items` which layers should choose tokens, and on how many of them what is recomputed needs to see all
    entries, by what `SamKV(keep=keep, layers=..., wide=...)` leaves of full prefill's own answers; gold answers are not
    looked at.

    The sets of layers that are tried are few (`candidates`, and the best of them without each of its layers), and
    `cheapest` chooses; then the least width that is `as_good`. Each question's chunks are computed into a store of
    their own, which ends with it. Questions without passages, or too long for the model, are left out; raises
    `SamKVError` when there are no others.
    """
    asked = [item for item in items if _can_be_asked(engine, item)]
    if not asked:
        raise SamKVError("There are no questions with passages that fit the model; give others with --data.")
    known = _Measured.of(Asking(engine, asked, progress), keep)
    sets = candidates(engine.adapter.shape.layers, known.agreement, _in_force(engine))
    known.measure("Trying sets of layers", [Setting(layers, WIDE, keep) for layers in sets])
    sets += without_one(known.cheapest(sets, keep))
    known.measure("Leaving layers out", [Setting(layers, WIDE, keep) for layers in sets])
    chosen, keeps = known.cheapest(sets, keep), sorted({*KEEPS, keep})
    by_width = {wide: Setting(chosen, wide, keep) for wide in WIDTHS}
    known.measure("Trying other widths", list(by_width.values()))
    wide = min(as_good({wide: known.left[setting] for wide, setting in by_width.items()}))
    by_keep = {share: Setting(chosen, wide, share) for share in keeps}
    known.measure("Trying other budgets", list(by_keep.values()))
    tried = [
        Tried(layers, *known.means(Setting(layers, WIDE, keep)), known.agreement(layers))
        for layers in dict.fromkeys(sets)
    ]
    widths = [Width(width, *known.means(setting)) for width, setting in by_width.items()]
    budgets = [Budget(share, *known.means(setting)) for share, setting in by_keep.items()]
    return LayerProfile(chosen, wide, len(asked), keep, tuple(tried), tuple(widths), tuple(budgets))


def _in_force(engine: SamKVEngine) -> list[Layers]:
    """The layers in the store's profile of the model, and those that its config notes, where there are any."""
    known = [engine.adapter.selection_layers]
    with suppress(ValueError):  # a damaged profile is not used; it is about to be replaced
        stored = engine.store.profiles.get(engine.model_fingerprint)
        known.append(stored.layers if stored else None)
    return [layers for layers in known if layers]


def _can_be_asked(engine: SamKVEngine, item: Item) -> bool:
    if not any(chunk.strip() for chunk in item.chunks):
        return False
    try:
        plan = engine.plan_question(item.question, item.chunks)
        check_length(plan, GenerationOptions(max_new_tokens=ANSWER_TOKENS), engine.adapter.config)
    except SamKVError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of the questions: full prefill's `own` answers, what a look saw, and what settings have `left` of
    the answers."""

    asking: Asking
    own: Sequence[OwnAnswer]
    looked: Sequence[Looked]
    left: dict[Setting, list[Left]] = field(default_factory=dict)

    @classmethod
    def of(cls, asking: Asking, keep: float) -> _Measured:
        """Full prefill's answers, and a look for which the share `keep` is to be kept."""

        def seen(engine: SamKVEngine, plan: PromptPlan, number: int) -> tuple[OwnAnswer, Looked]:
            own = own_answer(engine, plan)
            return own, look(engine, plan, own.ids, keep)

        found = asking.each("Answering with full prefill", [seen])[0]
        return cls(asking, [own for own, _ in found], [looked for _, looked in found])

    def measure(self, doing: str, settings: Sequence[Setting]) -> None:
        """Find out about those `settings` of which nothing is known."""
        new = [setting for setting in dict.fromkeys(settings) if setting not in self.left]
        if new:
            found = self.asking.each(doing, [self._leaving(setting) for setting in new])
            self.left.update(zip(new, found, strict=True))

    def _leaving(self, setting: Setting) -> Measure[Left]:
        method = SamKV(**setting._asdict())
        return lambda engine, plan, number: left_of(self.own[number], engine, plan, method)

    def cheapest(self, sets: Sequence[Layers], keep: float) -> Layers:
        """The layers to choose, of the measured `sets`."""
        return cheapest({layers: self.left[Setting(layers, WIDE, keep)] for layers in sets})

    def agreement(self, layers: Layers) -> float:
        """The questions' mean agreement of a look on `layers` with full attention."""
        return fmean(looked.agreement(layers) for looked in self.looked)

    def means(self, setting: Setting) -> tuple[float, float]:
        """The share of questions with the same answer, and the mean loss in nats."""
        left = self.left[setting]
        return fmean(one.same for one in left), fmean(one.loss for one in left)
