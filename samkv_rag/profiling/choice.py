"""From many questions to a model's selection layers: sets of them are tried, and the one that answers most like full
prefill is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.methods import SamKV
from samkv_rag.methods.profiled import ANSWER_WEIGHT, EARLY, SEES, VICINITY, WIDE, noted
from samkv_rag.options import known
from samkv_rag.profiling.answers import ANSWER_TOKENS, Left, OwnAnswer, left_of, own_answer
from samkv_rag.profiling.asking import Asking, Measure, Progress, can_be_asked
from samkv_rag.profiling.candidates import Layers, candidates, cheapest, kept_or_best, least, tells, without_one
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.store.profiles import NUMBERS, ModelProfile
from samkv_rag.types import PromptPlan

K = TypeVar("K")
KEEPS = (0.1, 0.15, 0.25, 0.5)
EARLIES = (0.0, EARLY, 1.0)
SIGHTS = (0.0, SEES, 0.5, 0.75)
WIDTHS = (0.0, WIDE, 0.5, 1.0)
WEIGHTS = (1.0, ANSWER_WEIGHT, 4.0, 8.0)
VICINITIES = (VICINITY, 0.5, 1.0)
WAITS = (0, 8, 16)
RESTS = ("drop", "int4")
HOLDS = (0.3, 0.5, 0.7, 1.0)


class Setting(NamedTuple):
    """What a method is tried with: the selection `layers`, how much sooner tokens `early` in a chunk are recomputed,
    the share of the rest that recomputed tokens attend to (`sees`), the share of all layers that are `wide`, how often
    the token that produces the answer's first counts (`answer_weight`), how much a token's `vicinity` does, what to
    `keep`, from which token on (`settle_at`), what becomes of the `rest`, and how much to `hold` where it is packed."""

    layers: Layers
    early: float
    sees: float
    wide: float
    answer_weight: float
    vicinity: float
    keep: float
    settle_at: int = 0
    rest: str = "drop"
    hold: float = 1.0

    def keeping_all(self) -> Setting:
        """The same, but everything is kept to the end of an answer: what is lost is lost by the recompute."""
        return self._replace(settle_at=ANSWER_TOKENS)

    def method(self) -> SamKV:
        """The method to try: without `answer_weight` where it is decided later what is kept, and without `early` where
        that is decided with the first token."""
        late = self.settle_at > 0 or self.rest != "drop"
        left_out: dict[str, Any] = {"answer_weight": None} if late else {"early": None}
        return SamKV(**self._asdict() | left_out)


@dataclass(frozen=True, slots=True)
class Tried:
    """How a set of layers did over the questions: the share with the `same` answer as full prefill, token by token; the
    mean `loss` of that answer's log-likelihood in nats, at most `WORST` a question; and the mean `agreement` of the
    first look with full attention."""

    layers: Layers
    same: float
    loss: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one `value` of an option did with the chosen layers: `same` and `loss` as above."""

    value: float | str
    same: float
    loss: float


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """The `chosen` layers, how much sooner tokens `early` in a chunk are recomputed, the share of the rest that
    recomputed tokens attend to (`sees`), the share of layers that are `wide`, the `answer_weight`, and how much the
    `vicinity` counts, from how many `questions`, and whether these `told` any of it: if not, all is as it was.

    Also all sets of layers that were `tried` with the share `keep` kept; the chosen one with several `earlies`,
    `sights`, `widths`, `weights`, and `vicinities` in turn; and all that was chosen at several `budgets`, with several
    `waits` before it is decided what is kept, each from the smallest on, with the `rests` dropped or held in four bits,
    and with several shares held so (`holds`)."""

    chosen: Layers
    early: float
    sees: float
    wide: float
    answer_weight: float
    vicinity: float
    questions: int
    told: bool
    keep: float
    tried: tuple[Tried, ...]
    earlies: tuple[Outcome, ...]
    sights: tuple[Outcome, ...]
    widths: tuple[Outcome, ...]
    weights: tuple[Outcome, ...]
    vicinities: tuple[Outcome, ...]
    budgets: tuple[Outcome, ...]
    waits: tuple[Outcome, ...]
    rests: tuple[Outcome, ...]
    holds: tuple[Outcome, ...]

    def as_profile(self) -> ModelProfile:
        """What a store keeps of it."""
        measured = {
            "questions": self.questions,
            "keep": self.keep,
            "tried": [{**asdict(tried), "layers": list(tried.layers)} for tried in self.tried],
            "earlies": _told("early", self.earlies),
            "sights": _told("sees", self.sights),
            "widths": _told("wide", self.widths),
            "weights": _told("answer_weight", self.weights),
            "vicinities": _told("vicinity", self.vicinities),
            "budgets": _told("keep", self.budgets),
            "waits": _told("settle_at", self.waits),
            "rests": _told("rest", self.rests),
            "holds": _told("hold", self.holds),
        }
        return ModelProfile(self.chosen, measured, **{name: getattr(self, name) for name in NUMBERS})


def _told(option: str, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [{option: one.value, "same": one.same, "loss": one.loss} for one in outcomes]


def profile(
    engine: SamKVEngine, items: Iterable[Item], keep: float = 0.15, progress: Progress = lambda *_: None
) -> LayerProfile:
    """Measure on `items` which layers should choose tokens, how much sooner tokens early in a chunk should be
    recomputed, what share of the rest recomputed tokens need to attend to, on how many layers to everything, and how
    much the token that produces the answer's first and a token's vicinity should count, by what `SamKV(keep=keep,
    layers=..., early=..., sees=..., wide=..., answer_weight=..., vicinity=..., rest="drop")` leaves of full prefill's
    own answers: dropping tells apart choices that hardly differ where nothing is dropped. Gold answers are not used.

    The sets of layers that are tried are few (`candidates`, and the best of them without each of its layers), and
    `cheapest` chooses; then, with everything kept (dropping would hide the difference), `early`, the `least` share and
    the `least` width; then the weight and the vicinity. Of values that cost the same, the one in force is kept unless
    another leaves more. What the questions do not tell (fewer than `FEWEST` tell nothing) stays as it is. What other
    budgets, settling later, and holding the rest or some of it in four bits leave is measured for the user to choose.
    Each question's chunks are computed into a store of their own, which is closed with it. Questions without passages,
    or too long for the model, are left out; raises `SamKVError` when there are no others.
    """
    asked = [item for item in items if can_be_asked(engine, item)]
    if not asked:
        raise SamKVError("There are no questions with passages that fit the model; give others with --data.")
    measured, now = _Measured.of(Asking(engine, asked, progress), keep), _stored(engine) or noted(engine.adapter)
    weight, vicinity = known(now.answer_weight, ANSWER_WEIGHT), known(now.vicinity, VICINITY)
    early = known(now.early, EARLY)
    in_force = [layers for layers in (engine.adapter.selection_layers, now.layers) if layers]
    sets = candidates(engine.adapter.shape.layers, measured.agreement, in_force)
    standing = SamKV().selection_layers(engine.adapter.shape.layers, now.layers)
    best, tried, told = _best_layers(measured, Setting(standing, early, SEES, WIDE, weight, vicinity, keep), sets)
    by_early = measured.varied(
        "Trying how early tokens come first", best.keeping_all(), "early", sorted({*EARLIES, early})
    )
    best = best._replace(early=kept_or_best(early, by_early))
    by_sight = measured.varied("Trying how much to attend to", best.keeping_all(), "sees", SIGHTS)
    best = best._replace(sees=least(SEES, by_sight))
    by_width = measured.varied("Trying other widths", best.keeping_all(), "wide", WIDTHS)
    best = best._replace(wide=least(WIDE, by_width))
    by_weight = measured.varied("Trying other weights", best, "answer_weight", sorted({*WEIGHTS, weight}))
    best = best._replace(answer_weight=kept_or_best(weight, by_weight))
    by_vicinity = measured.varied("Trying other vicinities", best, "vicinity", sorted({*VICINITIES, vicinity}))
    best = best._replace(vicinity=kept_or_best(vicinity, by_vicinity))
    by_keep = measured.varied("Trying other budgets", best, "keep", sorted({*KEEPS, keep}))
    by_wait = measured.varied("Deciding later what is kept", best, "settle_at", WAITS)
    by_rest = measured.varied("Holding the rest in four bits", best, "rest", RESTS)
    by_hold = measured.varied("Holding less of it", best._replace(rest="int4"), "hold", HOLDS)
    columns: list[Mapping[Any, Sequence[Left]]] = [
        by_early, by_sight, by_width, by_weight, by_vicinity, by_keep, by_wait, by_rest, by_hold
    ]  # fmt: skip
    chosen = best.layers, best.early, best.sees, best.wide, best.answer_weight, best.vicinity
    told = told or any(map(tells, columns[:5]))
    return LayerProfile(*chosen, len(asked), told, keep, tried, *map(_outcomes, columns))


def _best_layers(
    measured: _Measured, setting: Setting, sets: Sequence[Layers]
) -> tuple[Setting, tuple[Tried, ...], bool]:  # fmt: skip
    """`setting` with the best of the `sets`, or of the best one without each of its layers; how all of them did; and
    whether the questions tell them apart."""
    standing = setting.layers
    first = cheapest(standing, measured.varied("Trying sets of layers", setting, "layers", sets))
    left = measured.varied("Leaving layers out", setting, "layers", [*sets, *without_one(first)])
    tried = tuple(Tried(layers, *_means(found), measured.agreement(layers)) for layers, found in left.items())
    return setting._replace(layers=cheapest(standing, left)), tried, tells(left)


def _outcomes(left: Mapping[Any, Sequence[Left]]) -> tuple[Outcome, ...]:
    return tuple(Outcome(value, *_means(found)) for value, found in left.items())


def _means(left: Sequence[Left]) -> tuple[float, float]:
    """The share of questions with the same answer, and the mean loss in nats."""
    return fmean(one.same for one in left), fmean(one.loss for one in left)


def _stored(engine: SamKVEngine) -> ModelProfile | None:
    """The store's profile of the model; a damaged one is not used: it is about to be replaced."""
    try:
        return engine.store.profiles.get(engine.model_fingerprint)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of the questions: full prefill's `own` answers, what a look found (`looked`), and what methods have
    `left` of the answers: settings that differ only in what is not used are one."""

    asking: Asking
    own: Sequence[OwnAnswer]
    looked: Sequence[Looked]
    left: dict[SamKV, list[Left]] = field(default_factory=dict)

    @classmethod
    def of(cls, asking: Asking, keep: float) -> _Measured:
        """Full prefill's answers, and a look with the share `keep` to be kept."""

        def seen(engine: SamKVEngine, plan: PromptPlan, number: int) -> tuple[OwnAnswer, Looked]:
            own = own_answer(engine, plan)
            return own, look(engine, plan, own.ids, keep)

        found = asking.each("Answering with full prefill", [seen])[0]
        return cls(asking, [own for own, _ in found], [looked for _, looked in found])

    def measure(self, doing: str, methods: Iterable[SamKV]) -> None:
        """Measure those `methods` that have not been measured yet."""
        new = [method for method in dict.fromkeys(methods) if method not in self.left]
        if new:
            found = self.asking.each(doing, [self._leaving(method) for method in new])
            self.left.update(zip(new, found, strict=True))

    def _leaving(self, method: SamKV) -> Measure[Left]:
        return lambda engine, plan, number: left_of(self.own[number], engine, plan, method)

    def varied(self, doing: str, best: Setting, option: str, values: Iterable[K]) -> dict[K, list[Left]]:
        """What several values of an option leave, with everything else as in `best`."""
        others: list[dict[str, Any]] = [{option: value} for value in values]
        methods = {other[option]: best._replace(**other).method() for other in others}
        self.measure(doing, methods.values())
        return {value: self.left[method] for value, method in methods.items()}

    def agreement(self, layers: Layers) -> float:
        """The questions' mean agreement of a look on `layers` with full attention."""
        return fmean(looked.agreement(layers) for looked in self.looked)
