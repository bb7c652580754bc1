"""What is measured for a profile, and what a profile says of it."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from samkv_rag.methods.profiled import SEES, WIDE
from samkv_rag.profiling import LayerProfile, profile
from samkv_rag.profiling.answers import left_of, own_answer
from samkv_rag.store import StoreError
from samkv_rag.store.profiles import ModelProfile
from tests.models import tiny_engine
from tests.profiling.questions import CHUNKS, ITEM, ITEMS, planned

KEEP = 0.2
WIRING = "qwen3"
"""A wiring whose answers lose something by what is left out."""


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return tiny_engine(WIRING)


@pytest.fixture(scope="module")
def found(engine: SamKVEngine) -> LayerProfile:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("samkv_rag.profiling.candidates.FEWEST", 1)
        return profile(engine, ITEMS, keep=KEEP)


@pytest.fixture(autouse=True)
def few_questions_suffice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a real model is asked: it takes a while."""
    if "engine" in request.fixturenames:
        monkeypatch.setattr("samkv_rag.profiling.candidates.FEWEST", 1)


# -- what is found -----------------------------------------------------------------------------------------------


def test_a_profile_tells_what_a_method_that_drops_leaves_of_full_prefills_answers(
    engine: SamKVEngine, found: LayerProfile
) -> None:
    def means(**options: Any) -> tuple[float, float]:
        plans = [planned(engine, item) for item in ITEMS]
        own = [own_answer(engine, plan) for plan in plans]
        with engine.adapter.unacquainted(room=0):
            left = [
                left_of(*pair, SamKV(**{"rest": "drop"} | options))
                for pair in zip(own, [engine] * 2, plans, strict=True)
            ]
        return fmean(one.same for one in left), fmean(one.loss for one in left)

    for tried in found.tried:
        assert (tried.same, tried.loss) == pytest.approx(means(layers=tried.layers, keep=KEEP))
    rest: dict[str, Any] = {"layers": found.chosen, "sees": 0.3, "wide": 0.25, "keep": KEEP}
    rest |= {"early": 0.5, "answer_weight": 2.0, "vicinity": 0.0}
    for option, outcomes, chosen in (
        ("early", found.earlies, found.early),
        ("sees", found.sights, found.sees),
        ("wide", found.widths, found.wide),
        ("answer_weight", found.weights, found.answer_weight),
        ("vicinity", found.vicinities, found.vicinity),
        ("keep", found.budgets, KEEP),
        ("settle_at", found.waits, 0),
        ("rest", found.rests, "int4"),
        ("hold", found.holds, 1.0),
    ):
        for outcome in outcomes:
            alike: dict[str, Any] = {"settle_at": 32} if option in ("early", "sees", "wide") else {}
            late = bool(alike) or (option == "settle_at" and outcome.value != 0)
            late |= outcome.value == "int4" or option == "hold"
            alike |= {"answer_weight": None} if late else {"early": 0.0}
            assert (outcome.same, outcome.loss) == pytest.approx(means(**rest | {option: outcome.value} | alike))
        rest[option] = chosen
    assert [early.value for early in found.earlies] == [0.0, 0.5, 1.0]
    assert [sight.value for sight in found.sights] == [0.0, 0.3, 0.5, 0.75]
    assert [width.value for width in found.widths] == [0.0, 0.25, 0.5, 1.0]
    assert [weight.value for weight in found.weights] == [1.0, 2.0, 4.0, 8.0]
    assert [vicinity.value for vicinity in found.vicinities] == [0.0, 0.5, 1.0]
    assert [budget.value for budget in found.budgets] == [0.1, 0.15, 0.2, 0.25, 0.5]
    assert [wait.value for wait in found.waits] == [0, 8, 16]
    assert [one.value for one in found.rests] == ["drop", "int4"] and found.rests[0].loss > found.rests[1].loss
    assert [one.value for one in found.holds] == [0.3, 0.5, 0.7, 1.0] and found.holds[-1].loss == found.rests[1].loss
    assert found.waits[0].loss > found.waits[2].loss, "most see all then"
    assert len({tried.layers for tried in found.tried}) == len(found.tried) >= 5
    assert {(1, 2), (2, 3), (0, 1, 2, 3)} <= {tried.layers for tried in found.tried}
    assert {len(tried.layers) for tried in found.tried} == {1, 2, 3, 4}
    assert found.chosen in [tried.layers for tried in found.tried]


def test_gold_answers_and_questions_that_cannot_be_asked_change_nothing(
    engine: SamKVEngine, found: LayerProfile
) -> None:
    others = [replace(item, answers=("Lisbon",)) for item in ITEMS]
    assert profile(engine, [*others, replace(ITEM, chunks=(" ",))], keep=KEEP) == found
    too_long = replace(ITEM, chunks=("A sentence of many letters. " * 40,))
    assert profile(engine, [too_long, *ITEMS], keep=KEEP) == found
    with pytest.raises(SamKVError, match="--data"):
        profile(engine, [replace(ITEM, chunks=())])


def test_what_a_store_keeps_of_it_says_what_was_measured(found: LayerProfile) -> None:
    kept = found.as_profile()
    assert (kept.layers, kept.sees, kept.wide, kept.vicinity) == (found.chosen, found.sees, found.wide, found.vicinity)
    assert (kept.early, kept.answer_weight) == (found.early, found.answer_weight)
    assert (kept.measured["questions"], kept.measured["keep"]) == (2, KEEP)
    first, last = found.tried[0], found.budgets[-1]
    row = {"layers": list(first.layers), "same": first.same, "loss": first.loss, "agreement": first.agreement}
    assert kept.measured["tried"][0] == row
    assert [early["early"] for early in kept.measured["earlies"]] == [0.0, 0.5, 1.0]
    assert [sight["sees"] for sight in kept.measured["sights"]] == [0.0, 0.3, 0.5, 0.75]
    assert [width["wide"] for width in kept.measured["widths"]] == [0.0, 0.25, 0.5, 1.0]
    assert [vicinity["vicinity"] for vicinity in kept.measured["vicinities"]] == [0.0, 0.5, 1.0]
    assert kept.measured["budgets"][-1] == {"keep": 0.5, "same": last.same, "loss": last.loss}
    assert [wait["settle_at"] for wait in kept.measured["waits"]] == [0, 8, 16]
    assert [one["rest"] for one in kept.measured["rests"]] == ["drop", "int4"]
    assert [one["hold"] for one in kept.measured["holds"]] == [0.3, 0.5, 0.7, 1.0]


def test_of_too_few_questions_a_profile_shows_what_they_leave_and_keeps_all_as_it_was() -> None:
    engine = tiny_engine(WIRING, store=ChunkKVStore())
    engine.store.profiles.put(engine.model_fingerprint, ModelProfile((0, 2), vicinity=3.0, answer_weight=5.0))
    found = profile(engine, [ITEM])
    assert not found.told and len(found.tried) > 5
    assert (found.chosen, found.vicinity, found.answer_weight) == ((0, 2), 3.0, 5.0)
    assert (found.sees, found.wide) == (SEES, WIDE)


def test_all_is_tried_with_the_vicinity_in_force() -> None:
    engine = tiny_engine(WIRING, store=ChunkKVStore())
    engine.store.profiles.put(engine.model_fingerprint, ModelProfile((0, 2), vicinity=3.0))
    found = profile(engine, [ITEM])
    assert [outcome.value for outcome in found.vicinities] == [0.0, 0.5, 1.0, 3.0]
    plan = planned(engine, ITEM)
    first = found.tried[0]
    left = left_of(
        own_answer(engine, plan),
        engine,
        plan,
        SamKV(rest="drop", layers=first.layers, wide=0.25, sees=0.3, vicinity=3.0),
    )
    assert first.loss == pytest.approx(left.loss)


def test_what_is_in_force_for_the_model_is_tried(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.adapter.model.config, "samkv_selection_layers", [0, 3], raising=False)
    assert (0, 3) in [tried.layers for tried in profile(engine, [ITEM]).tried]
    with tiny_engine(WIRING, store=ChunkKVStore()) as other:
        other.store.profiles.put(other.model_fingerprint, ModelProfile((0, 2)))
        assert {(0, 2), (0, 3)} <= {tried.layers for tried in profile(other, [ITEM]).tried}


# -- on the way ----------------------------------------------------------------------------------------------------


def test_progress_counts_the_measurements_of_each_step(engine: SamKVEngine) -> None:
    ticks: list[tuple[str, int, int]] = []
    found = profile(engine, ITEMS, keep=0.15, progress=lambda *tick: ticks.append(tick))
    steps = list(dict.fromkeys(step for step, _, _ in ticks))
    totals = {step: total for step, _, total in ticks}
    for step in steps:
        assert [done for name, done, _ in ticks if name == step] == list(range(totals[step] + 1))
    assert totals[steps[0]] == len(ITEMS)
    more = (
        found.earlies,
        found.sights,
        found.widths,
        found.weights,
        found.vicinities,
        found.budgets,
        found.waits,
        found.rests,
        found.holds,
    )
    others = len(found.tried) + sum(len(outcomes) - 1 for outcomes in more)  # what is chosen is measured once
    others += 1 + ((found.sees, found.wide) != (SEES, WIDE))  # once where everything is kept, and again where it is not
    assert sum(totals[step] for step in steps[1:]) == len(ITEMS) * others


def test_a_questions_caches_are_gone_before_the_next_ones_are_made(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ChunkKVStore] = []

    class Counted(ChunkKVStore):
        def __init__(self) -> None:
            super().__init__()
            for other in made:
                with pytest.raises(StoreError, match="closed"):
                    len(other)
            made.append(self)

    monkeypatch.setattr("samkv_rag.profiling.asking.ChunkKVStore", Counted)
    profile(engine, ITEMS, keep=KEEP)
    assert len(made) >= 2 * len(ITEMS)


def test_the_store_is_left_as_it_was_even_when_measuring_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(store=ChunkKVStore())
    engine.precompute(CHUNKS)
    before = sorted(engine.store.keys())
    items = [replace(ITEM, chunks=("Something that was never stored before.", CHUNKS[0])), ITEM]
    profile(engine, items)
    assert sorted(engine.store.keys()) == before != []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("samkv_rag.profiling.choice.left_of", stop)
    with pytest.raises(KeyboardInterrupt):
        profile(engine, items)
    assert sorted(engine.store.keys()) == before
    assert engine.store.profiles.get(engine.model_fingerprint) is None
