"""Measured selection layers are used, and for that model alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine
from samkv_rag.explain.recording import Recording
from samkv_rag.methods import Method
from samkv_rag.store.profiles import ModelProfile
from samkv_rag.types import Selection
from tests.models import tiny_engine
from tests.profiling.questions import CHUNKS, ITEM


def selected_by(engine: SamKVEngine, method: Method) -> Selection:
    engine.precompute(CHUNKS)
    recording = Recording(method)
    engine.answer(ITEM.question, CHUNKS, method=recording, max_new_tokens=1)
    return recording.selection


def kept_by(engine: SamKVEngine, method: Method) -> list[list[int]]:
    return [tokens.tolist() for tokens in selected_by(engine, method).kept]


def recomputed_by(engine: SamKVEngine, method: Method) -> list[list[int]]:
    return [tokens.tolist() for tokens in selected_by(engine, method).recomputed]


def test_a_stored_profile_is_used_and_without_it_other_layers_are(tmp_path: Path) -> None:
    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        by_layer = {layer: kept_by(engine, SamKV(settle="before", keep=0.3, layers=(layer,))) for layer in range(4)}
        middle = kept_by(engine, SamKV(settle="before", keep=0.3, layers=(1, 2)))
        assert kept_by(engine, SamKV(settle="before", keep=0.3)) == middle, "the middle third of four layers"
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,)))
        assert kept_by(engine, SamKV(settle="before", keep=0.3)) == by_layer[3] != middle
        assert kept_by(engine, SamKV(settle="before", keep=0.3, layers=(0,))) == by_layer[0] != by_layer[3], (
            "the caller's come first"
        )
    with tiny_engine(store=ChunkKVStore(tmp_path)) as again:
        assert kept_by(again, SamKV(settle="before", keep=0.3)) == by_layer[3]


def flops(engine: SamKVEngine, **options: Any) -> float:
    """The cost of an answer: the more is attended to, the higher."""
    method = SamKV(rest="drop", keep=0.5, layers=(3,), **options)
    return engine.answer(ITEM.question, CHUNKS, method=method, max_new_tokens=1).report.flops


@pytest.mark.parametrize(
    ("option", "values", "default", "rest"),
    [("wide", (0.25, 0.5, 1.0), 0.25, {}), ("sees", (0.0, 0.3, 0.9), 0.3, {"wide": 0.0})],
)
def test_what_is_seen_is_as_stored_and_without_it_the_default(
    tmp_path: Path, option: str, values: tuple[float, ...], default: float, rest: dict[str, Any]
) -> None:
    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        engine.precompute(CHUNKS)
        flops(engine)  # what prompts begin with is known from now on
        costs = {value: flops(engine, **rest, **{option: value}) for value in values}
        assert sorted(set(costs.values())) == list(costs.values())
        assert flops(engine, **rest) == costs[default]
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,)))
        assert flops(engine, **rest) == costs[default], "a profile from before it was measured"
        measured = next(value for value in values if value != default)
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,), **{option: measured}))
        assert flops(engine, **rest) == costs[measured]
        assert flops(engine, **rest, **{option: values[-1]}) == costs[values[-1]], "the caller's comes first"


@pytest.mark.parametrize(
    ("option", "values", "chosen", "rest"),
    [
        ("vicinity", (0.0, 1.0, 9.0), kept_by, {}),
        ("answer_weight", (2.0, 1.0, 1.2), kept_by, {}),
        ("early", (0.5, 0.0, 4.0), recomputed_by, {"settle_at": 4}),
    ],
)
def test_what_a_store_says_counts_is_used_and_without_it_the_default(
    tmp_path: Path, option: str, values: tuple[float, ...], chosen: Callable[[SamKVEngine, Method], list[list[int]]],
    rest: dict[str, Any],
) -> None:  # fmt: skip
    def found(engine: SamKVEngine, **options: Any) -> list[list[int]]:
        return chosen(engine, SamKV(rest="drop", keep=0.3, layers=(3,), wide=0.5, **rest, **options))

    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        default, other, most = [found(engine, **{option: value}) for value in values]
        assert len({str(tokens) for tokens in (default, other, most)}) == 3
        assert found(engine) == default
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,)))
        assert found(engine) == default, "a profile from before it was measured"
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,), **{option: values[2]}))
        assert found(engine) == most
        assert found(engine, **{option: values[1]}) == other, "the caller's comes first"


def test_a_config_that_notes_layers_was_measured_with_every_look_counting_alike_wherever_it_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = tiny_engine()
    before = kept_by(engine, SamKV(rest="drop", keep=0.3, layers=(3,)))
    monkeypatch.setattr(engine.adapter.model.config, "samkv_selection_layers", [3], raising=False)
    alike, others = (kept_by(engine, SamKV(rest="drop", keep=0.3, answer_weight=weight)) for weight in (1.0, 2.0))
    assert kept_by(engine, SamKV(rest="drop", keep=0.3)) == alike != others == before
    anywhere, early = (
        recomputed_by(engine, SamKV(rest="drop", keep=0.3, settle_at=4, early=power)) for power in (0.0, 0.5)
    )
    assert recomputed_by(engine, SamKV(rest="drop", keep=0.3, settle_at=4)) == anywhere != early


def test_what_stays_at_once_is_recomputed_wherever_it_stands() -> None:
    engine = tiny_engine()
    at_once, anywhere, early = (
        recomputed_by(engine, SamKV(rest="drop", keep=0.3, layers=(3,), early=power)) for power in (None, 0.0, 0.5)
    )
    assert at_once == anywhere != early


def test_a_profile_is_the_models_however_its_caches_are_made_and_stored(tmp_path: Path) -> None:
    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,)))
    with tiny_engine(store=ChunkKVStore(tmp_path), kv_dtype="int8", sink_prefix="bos") as other:
        assert other.fingerprint != engine.fingerprint
        by_layer = {layer: kept_by(other, SamKV(settle="before", keep=0.3, layers=(layer,))) for layer in (1, 3)}
        assert kept_by(other, SamKV(settle="before", keep=0.3)) == by_layer[3] != by_layer[1]


def test_another_models_profile_is_not_used(tmp_path: Path) -> None:
    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        before = kept_by(engine, SamKV(settle="before", keep=0.3))
        other = tiny_engine("qwen2").model_fingerprint
        assert other != engine.model_fingerprint
        engine.store.profiles.put(other, ModelProfile((3,)))
        assert (
            kept_by(engine, SamKV(settle="before", keep=0.3))
            == before
            != kept_by(engine, SamKV(settle="before", keep=0.3, layers=(3,)))
        )


def test_a_damaged_profile_is_reported_and_ignored(tmp_path: Path) -> None:
    with tiny_engine(store=ChunkKVStore(tmp_path)) as engine:
        before = kept_by(engine, SamKV(settle="before", keep=0.3))
        engine.store.profiles.put(engine.model_fingerprint, ModelProfile((3,)))
        file = tmp_path / "models" / f"{engine.model_fingerprint}.json"
        sound = file.read_bytes()
        for damaged in (sound.replace(b"3", b"2", 1), sound[:-9], b"[]", b"\xff", sound.replace(b"3", b'"x"')):
            file.write_bytes(damaged)
            assert kept_by(engine, SamKV(settle="before", keep=0.3)) == before
            report = engine.answer(
                ITEM.question, CHUNKS, method=SamKV(settle="before", keep=0.3), max_new_tokens=1
            ).report
            assert any("damaged" in note and "samkv-rag profile" in note for note in report.notes), damaged
        file.write_bytes(sound)
        assert (
            engine.answer(ITEM.question, CHUNKS, method=SamKV(settle="before", keep=0.3), max_new_tokens=1).report.notes
            == ()
        )


def test_a_profile_in_memory_is_gone_with_its_store() -> None:
    store = ChunkKVStore()
    store.profiles.put("model", ModelProfile((1,), {"questions": 9}))
    assert store.profiles.get("model") == ModelProfile((1,), {"questions": 9})
    assert ChunkKVStore().profiles.get("model") is None


@pytest.mark.parametrize("option", ["vicinity", "answer_weight", "early"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_stored_number_that_is_none_is_damage(tmp_path: Path, option: str, value: Any) -> None:
    profiles = ChunkKVStore(tmp_path).profiles
    profiles.put("model", ModelProfile((1,), **{option: value}))
    with pytest.raises(ValueError, match="damaged"):
        profiles.get("model")
