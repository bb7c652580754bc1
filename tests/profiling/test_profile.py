"""Selection layers by measurement: what is measured, what is chosen, and that it is used for that model alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.explain.recording import Recording
from samkv_rag.methods import Method, Run
from samkv_rag.profiling import profile
from samkv_rag.profiling.choice import ENOUGH, choose_layers
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.store.profiles import ModelProfile
from samkv_rag.types import BLOCK
from tests.models import byte_tokenizer, tiny_engine
from tests.oracles import stock

CHUNKS = (
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps.",
    "Ana Petrov studied chemistry in Bergen, and later in Oslo.",
    "The company then moved to the coast, where it keeps a museum of old lamps.",
)
ITEM = Item("t-0", "t", "Where is Lumen Labs based?", ("Oslo",), CHUNKS)
NO_ANSWER = replace(ITEM, answers=("Lisbon",))


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute(CHUNKS)
    return engine


@pytest.fixture(scope="module")
def looked(engine: SamKVEngine) -> Looked:
    return look(engine, ITEM, keep=0.3)


# -- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)])
def test_what_a_layer_would_keep_is_what_samkv_keeps_with_it(
    engine: SamKVEngine, looked: Looked, layers: tuple[int, ...]
) -> None:
    plan = engine.plan_question(ITEM.question, CHUNKS)
    method = SamKV(settle="before", keep=0.3, look="keys", layers=layers)
    selection = method.prepare(Run(plan, engine.adapter, engine.store, 1)).selection
    assert [mask.nonzero()[:, 0].tolist() for mask in looked.kept(layers)] == [t.tolist() for t in selection.kept]


def test_the_reference_is_the_attention_of_a_stock_model_that_writes_the_answer(
    engine: SamKVEngine, looked: Looked
) -> None:
    plan = engine.plan_question(ITEM.question, CHUNKS)
    answer = byte_tokenizer()(" Oslo", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        maps = stock("llama")(torch.tensor([plan.token_ids + answer]), output_attentions=True).attentions
    rows = slice(plan.n_tokens - 1, plan.n_tokens + len(answer) - 1)
    whole = torch.stack(maps)[:, 0, :, rows].mean((0, 1, 2))
    for chunk, own in zip(plan.chunks, looked.reference, strict=True):
        assert torch.allclose(own, whole[chunk.start : chunk.stop], atol=1e-5)


def test_agreement_is_1_for_the_best_blocks_and_less_for_others(looked: Looked) -> None:
    sums = [torch.stack([part.sum() for part in own.split(BLOCK)]) for own in looked.reference]
    perfect = [replace(c, blocks=s.repeat(4, 1)) for c, s in zip(looked.scores, sums, strict=True)]
    worst = [replace(c, blocks=-c.blocks) for c in perfect]
    assert replace(looked, scores=perfect).agreement((2,)) == pytest.approx(1)
    assert replace(looked, scores=worst).agreement((2,)) < 0.99, "a random model attends to everything alike"


def test_answers_are_found_wherever_they_stand_and_count_when_kept_whole(looked: Looked) -> None:
    starts = [(0, CHUNKS[0].index("Oslo")), (1, CHUNKS[1].index("Oslo"))]
    assert [spot[:2] for spot in looked.spots if spot[2] - spot[1] == 4] == starts
    blank = [(chunk, start - 1) for chunk, start in starts]
    assert [spot[:2] for spot in looked.spots if spot[2] - spot[1] == 5] == blank
    kept = looked.kept((1,))
    want = [all(kept[c][t] for t in range(a, b)) for c, a, b in looked.spots]
    assert looked.answers((1,)) == sum(want) / 4
    assert replace(looked, budget=sum(map(len, CHUNKS))).answers((1,)) == 1
    assert replace(looked, budget=0).answers((1,)) == 0
    assert replace(looked, spots=()).answers((1,)) is None


# -- what is chosen ------------------------------------------------------------------------------------------------


def values_of(table: dict[tuple[int, ...], list[float]], otherwise: list[float]) -> object:
    return lambda layers: table.get(layers, otherwise)


@pytest.mark.parametrize(
    ("table", "want"),
    [
        ({(2,): [0.9, 0.8, 0.9]}, (2,)),  # the best one
        ({(1,): [0.9, 0.8, 0.8], (2,): [0.8, 0.9, 0.9]}, (1,)),  # as good within the noise: the lower one
        ({(1,): [0.7, 0.6, 0.7], (2,): [0.8, 0.7, 0.8]}, (2,)),  # a little better, but every time
        ({(2,): [0.6, 0.6, 0.6], (0, 2): [0.9, 0.9, 0.9]}, (0, 2)),  # another one helps
        ({(2,): [0.6, 0.6, 0.6], (0, 2): [0.9, 0.3, 0.7]}, (2,)),  # or only seems to
    ],
)
def test_the_lowest_layer_that_is_as_good_and_others_while_they_help(
    table: dict[tuple[int, ...], list[float]], want: tuple[int, ...]
) -> None:
    assert choose_layers(4, values_of(table, [0.1, 0.1, 0.1])) == want  # type: ignore[arg-type]


def test_answers_decide_where_there_are_enough_of_them_and_agreement_elsewhere(engine: SamKVEngine) -> None:
    ticks: list[int] = []
    few = profile(engine, [ITEM, NO_ANSWER], progress=lambda: ticks.append(1))
    assert (few.by, few.questions, few.with_answers, len(ticks)) == ("agreement", 2, 1, 2)
    many = profile(engine, [ITEM] * ENOUGH)
    assert (many.by, many.with_answers) == ("answers", ENOUGH)
    assert [tried.layers for tried in many.tried][:5] == [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]
    assert many.chosen in [tried.layers for tried in many.tried]
    with pytest.raises(SamKVError, match="--data"):
        profile(engine, [])


def test_the_store_is_left_as_it_was_even_when_measuring_is_stopped(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(engine.store.keys())
    items = [replace(ITEM, chunks=("Something that was never stored before.", CHUNKS[0])), ITEM]
    profile(engine, items)
    assert sorted(engine.store.keys()) == before != []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("samkv_rag.profiling.choice.look", stop)
    with pytest.raises(KeyboardInterrupt):
        profile(engine, items)
    assert sorted(engine.store.keys()) == before


# -- what is used --------------------------------------------------------------------------------------------------


def kept_by(engine: SamKVEngine, method: Method) -> list[list[int]]:
    engine.precompute(CHUNKS)
    recording = Recording(method)
    engine.answer(ITEM.question, CHUNKS, method=recording, max_new_tokens=1)
    return [tokens.tolist() for tokens in recording.last[0][1].kept]


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
    store.profiles.put("model", ModelProfile((1,), {"by": "answers"}))
    assert store.profiles.get("model") == ModelProfile((1,), {"by": "answers"})
    assert ChunkKVStore().profiles.get("model") is None
