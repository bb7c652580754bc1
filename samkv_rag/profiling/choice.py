"""From many questions to a model's selection layers: sets of them are tried, and the one that answers as full prefill
does is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import fmean

from samkv_rag.calls import check_length
from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.methods import SamKV
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.profiling.answers import ANSWER_TOKENS, Left, OwnAnswer, left_of, own_answer
from samkv_rag.profiling.asking import Asking, Measure, Progress
from samkv_rag.profiling.candidates import Layers, candidates, cheapest, without_one
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.store.profiles import ModelProfile
from samkv_rag.types import PromptPlan

KEEPS = (0.1, 0.15, 0.25, 0.5)
Setting = tuple[Layers, float]


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
class Budget:
    """What the chosen layers come to when the share `keep` of the chunk tokens is kept: `same` and `loss` as above."""

    keep: float
    same: float
    loss: float


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The `chosen` layers, over how many `questions`, all sets that were `tried` with the share `keep` kept, and the
    chosen ones at several `budgets`, from the smallest on."""

    chosen: Layers
    questions: int
    keep: float
    tried: tuple[Tried, ...]
    budgets: tuple[Budget, ...]

    def as_profile(self) -> ModelProfile:
        """What a store keeps of it."""
        rows = [{**asdict(tried), "layers": list(tried.layers)} for tried in self.tried]
        budgets = [asdict(budget) for budget in self.budgets]
        return ModelProfile(
            self.chosen, {"questions": self.questions, "keep": self.keep, "tried": rows, "budgets": budgets}
        )


def profile(
    engine: SamKVEngine, items: Iterable[Item], keep: float = 0.15, progress: Progress = lambda *_: None
) -> LayerProfile:
    """Measure on `items` which layers should choose tokens, by what `SamKV(keep=keep, layers=...)` leaves of full
    prefill's own answers; gold answers are not looked at.

    The sets that are tried are few (`candidates`, and the best of them without each of its layers), and `cheapest`
    chooses. Each question's chunks are computed into a store of their own, which ends with it. Questions without
    passages, or too long for the model, are left out; raises `SamKVError` when there are no others.
    """
    asked = [item for item in items if _can_be_asked(engine, item)]
    if not asked:
        raise SamKVError("There are no questions with passages that fit the model; give others with --data.")
    known = _Measured.of(Asking(engine, asked, progress), keep)
    sets = candidates(engine.adapter.shape.layers, known.agreement, _in_force(engine))
    known.measure("Trying sets of layers", [(layers, keep) for layers in sets])
    sets += without_one(known.cheapest(keep))
    known.measure("Leaving layers out", [(layers, keep) for layers in sets])
    chosen, keeps = known.cheapest(keep), sorted({*KEEPS, keep})
    known.measure("Trying other budgets", [(chosen, share) for share in keeps])
    tried = [Tried(layers, *known.means(layers, keep), known.agreement(layers)) for layers in dict.fromkeys(sets)]
    budgets = [Budget(share, *known.means(chosen, share)) for share in keeps]
    return LayerProfile(chosen, len(asked), keep, tuple(tried), tuple(budgets))


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
        check_length(plan, GenerationOptions(max_new_tokens=ANSWER_TOKENS), engine.adapter.model.config)
    except SamKVError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of the questions: full prefill's `own` answers, what a look saw, and what settings (layers, and a
    share to keep) have `left` of the answers."""

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
            found = self.asking.each(doing, [self._leaving(*setting) for setting in new])
            self.left.update(zip(new, found, strict=True))

    def _leaving(self, layers: Layers, keep: float) -> Measure[Left]:
        method = SamKV(keep=keep, layers=layers)
        return lambda engine, plan, number: left_of(self.own[number], engine, plan, method)

    def cheapest(self, keep: float) -> Layers:
        """The layers to choose, of those measured with `keep`."""
        return cheapest({layers: left for (layers, share), left in self.left.items() if share == keep})

    def agreement(self, layers: Layers) -> float:
        """The questions' mean agreement of a look on `layers` with full attention."""
        return fmean(looked.agreement(layers) for looked in self.looked)

    def means(self, layers: Layers, keep: float) -> tuple[float, float]:
        """The share of questions with the same answer, and the mean loss in nats."""
        left = self.left[layers, keep]
        return fmean(one.same for one in left), fmean(one.loss for one in left)
