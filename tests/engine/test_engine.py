"""The engine's promises: lazy, exact, one answer for all ways of asking, sentences for what cannot be done."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.prompt.matcher import MIN_CHARS
from tests.cases import WIRINGS
from tests.models import BEGINS, adapter, build, byte_tokenizer, templated, tiny_engine
from tests.oracles import stock

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen before she moved to the coast, where she lives now.",
]
ASKED = "Where is Lumen Labs based?"
EVERYTHING = SamKV(keep=1.0)


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute(CHUNKS)
    return engine


# -- construction --------------------------------------------------------------------------------------------------


def test_construction_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was attached")

    model = adapter("llama").model
    monkeypatch.setattr(ModelAdapter, "__init__", never)
    engine = SamKVEngine.from_pretrained("no-such-owner/no-such-model", store=":memory:")
    assert engine.source.name == "no-such-owner/no-such-model"
    engine = SamKVEngine.from_pretrained(model, tokenizer=byte_tokenizer(), store=":memory:")
    with pytest.raises(AssertionError, match="attached"):
        engine.load()


def fingerprint(model: Any = None, tokenizer: Any = None, **options: Any) -> str:
    return SamKVEngine.from_pretrained(
        adapter("llama").model if model is None else model, tokenizer=tokenizer or byte_tokenizer(),
        store=":memory:", **options,
    ).fingerprint  # fmt: skip


def test_the_fingerprint_names_what_caches_depend_on() -> None:
    base = fingerprint()
    bent = build(WIRINGS["llama"]())
    assert fingerprint(bent) == base, "the same weights in another object"
    with torch.no_grad():
        bent.get_decoder().layers[2].mlp.up_proj.weight[3, 5] += 1e-3
    scaled = build(WIRINGS["llama-linear"]())
    assert scaled.state_dict().keys() == bent.state_dict().keys(), "only the config differs"
    chat, begins = byte_tokenizer(chat=True), templated(BEGINS)
    others = {
        "weights": fingerprint(bent), "rope": fingerprint(scaled),
        "dtype": fingerprint(build(WIRINGS["llama"](), torch.bfloat16)),
        "no sink prefix": fingerprint(sink_prefix="none"), "bos": fingerprint(sink_prefix="bos"),
        "tokenizer": fingerprint(tokenizer=_with_one_token_more()),
        "int8": fingerprint(kv_dtype="int8"), "fp8": fingerprint(kv_dtype="fp8"), "int4": fingerprint(kv_dtype="int4"),
        "half": fingerprint(kv_dtype="bf16"),
    }  # fmt: skip
    assert base not in others.values()
    assert len(set(others.values())) == len(others)
    half = build(WIRINGS["llama"](), torch.bfloat16)
    assert fingerprint(half, kv_dtype="bf16") == others["dtype"], "stored as the model computes, by either name"
    assert fingerprint(method="reuse") == base, "never the method"
    assert fingerprint(tokenizer=begins) not in {base, *others.values()}, "a chat template: prompts begin with a BOS"
    assert fingerprint(tokenizer=begins, sink_prefix="bos") == others["bos"], "and by itself never that"
    assert fingerprint(tokenizer=chat) == base, "nor what else it writes"


def _with_one_token_more() -> Any:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.add_tokens(["Lumen"])
    return tokenizer


# -- exactness through the front door ------------------------------------------------------------------------------


def stock_answer(engine: SamKVEngine, model: Any, count: int = 8, **generation: Any) -> list[int]:
    ids = torch.tensor([engine._planner.for_question(ASKED, CHUNKS).token_ids])
    options = {"do_sample": False, "max_new_tokens": count, "attention_mask": torch.ones_like(ids), **generation}
    return model.generate(ids, **options)[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["full", EVERYTHING], ids=["full", "samkv"])
def test_the_models_own_repetition_penalty_sees_the_whole_prompt(method: Any) -> None:
    model, reference = (build(WIRINGS["llama"]()) for _ in range(2))
    for each in (model, reference):
        each.generation_config.repetition_penalty = 1.6
    engine = SamKVEngine.from_pretrained(model, tokenizer=byte_tokenizer(), store=":memory:", method=method)
    engine.precompute(CHUNKS)
    got = list(engine.answer(ASKED, CHUNKS, max_new_tokens=8).token_ids)
    assert got == stock_answer(engine, reference)
    assert got != stock_answer(engine, stock("llama")), "the penalty must matter"


@pytest.mark.parametrize("method", ["full", EVERYTHING], ids=["full", "samkv"])
def test_a_seed_draws_what_plain_generate_draws(engine: SamKVEngine, method: Any) -> None:
    state = torch.random.get_rng_state()
    answer = engine.answer(ASKED, CHUNKS, method=method, max_new_tokens=8, temperature=1.2, top_k=50, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state is left alone"
    torch.manual_seed(7)
    want = stock_answer(engine, stock("llama"), do_sample=True, temperature=1.2, top_k=50)
    assert list(answer.token_ids) == want


WILD: list[dict[str, Any]] = [
    {"cache_implementation": "static"},
    {"return_dict_in_generate": True},
    {"num_return_sequences": 2, "do_sample": True},
    {"stop_strings": ["zzzz"]},
]


@pytest.mark.parametrize("setting", WILD, ids=lambda setting: next(iter(setting)))
@pytest.mark.parametrize("method", ["full", EVERYTHING], ids=["full", "samkv"])
def test_generation_configs_found_in_the_wild_do_not_get_in_the_way(setting: dict[str, Any], method: Any) -> None:
    model = build(WIRINGS["llama"]())
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    engine = SamKVEngine.from_pretrained(model, tokenizer=byte_tokenizer(), store=":memory:", method=method)
    engine.precompute(CHUNKS)
    assert list(engine.answer(ASKED, CHUNKS, max_new_tokens=8).token_ids) == stock_answer(engine, stock("llama"))


# -- misses and damage ---------------------------------------------------------------------------------------------


def test_a_miss_is_reported_and_healed() -> None:
    engine = tiny_engine()
    first = engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8)
    second = engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8)
    assert first.report.misses == tuple(text[:60] for text in CHUNKS)
    assert second.report.misses == ()
    assert second.report.chunk_tokens == sum(map(len, CHUNKS))
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_block_is_a_miss_with_the_answer_of_full(harm: str, tmp_path: Path) -> None:
    engine = tiny_engine(store=ChunkKVStore(tmp_path))
    (key,) = engine.precompute(CHUNKS[:1])
    want, reused = (engine.answer(ASKED, CHUNKS[:1], method=method, max_new_tokens=8) for method in ("full", "reuse"))
    assert want.report.misses == reused.report.misses == ()
    _harm(next(tmp_path.rglob(f"{key}.kv.*")), harm)
    hurt = engine.answer(ASKED, CHUNKS[:1], method="reuse", max_new_tokens=8)
    assert hurt.report.misses == (CHUNKS[0][:60],)
    assert hurt.token_ids == want.token_ids
    healed = engine.answer(ASKED, CHUNKS[:1], method="reuse", max_new_tokens=8)
    assert healed.report.misses == ()
    assert healed.token_ids == reused.token_ids
    assert engine.store.verify() == []


def test_a_damaged_block_that_is_written_over_does_no_harm(tmp_path: Path) -> None:
    engine = tiny_engine(store=ChunkKVStore(tmp_path))
    key, _ = engine.precompute(CHUNKS)
    want = engine.answer(ASKED, CHUNKS, method="full", max_new_tokens=8)
    _harm(next(tmp_path.rglob(f"{key}.kv.*")), "flip")
    got = engine.answer(ASKED, CHUNKS, method=EVERYTHING, max_new_tokens=8)
    assert got.token_ids == want.token_ids and got.report.misses == () and got.report.kv_bytes_read == 0
    assert engine.store.verify() == [key]


def _harm(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
        return
    data[-len(data) // 3] ^= 4
    path.write_bytes(data[: len(data) // 2] if how == "truncate" else data)


def test_caches_stored_otherwise_are_misses_and_live_side_by_side() -> None:
    store = ChunkKVStore(":memory:")
    plain, small = tiny_engine(store=store), tiny_engine(store=store, kv_dtype="int8")
    plain.precompute(CHUNKS)
    want = plain.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=8)
    missed = small.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=8)
    assert missed.report.misses == tuple(text[:60] for text in CHUNKS)
    healed = small.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=8)
    assert healed.report.misses == () and store.stats().kv_dtypes == {"fp32": 2, "int8": 2}
    assert 0 < healed.report.kv_bytes_read < want.report.kv_bytes_read / 3
    assert plain.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=8).token_ids == want.token_ids
    assert small.stored_bytes([512]) < plain.stored_bytes([512]) / 2


def test_an_unknown_kv_dtype_is_a_sentence() -> None:
    with pytest.raises(SamKVError, match="kv_dtype is one of model, bf16, fp16, int8, fp8, int4, not 'int2'"):
        tiny_engine(kv_dtype="int2")


def test_forgotten_chunks_are_misses() -> None:
    engine = tiny_engine()
    keys = engine.precompute(CHUNKS)
    assert engine.plan(f"{CHUNKS[0]}\n{ASKED}").chunks
    with pytest.raises(SamKVError, match=r"Keys must be a list of texts, not str; pass \[text\]"):
        engine.forget(keys[0])
    assert engine.forget(keys) == 2
    assert not engine.plan(f"{CHUNKS[0]}\n{ASKED}").chunks
    assert len(engine.answer(ASKED, CHUNKS, max_new_tokens=1).report.misses) == 2


def test_short_chunks_serve_who_names_them_and_are_not_looked_for_in_prompts() -> None:
    engine = tiny_engine()
    short, long = CHUNKS[0][: MIN_CHARS - 1], CHUNKS[1][1 : MIN_CHARS + 1]
    assert len(short) < MIN_CHARS == len(long)
    engine.precompute(["e", short, long])
    assert [chunk.text for chunk in engine.plan(f"Hello there. {short}. {long}. Where?").chunks] == [long]
    report = engine.answer(ASKED, ["e", short], max_new_tokens=1).report
    assert report.misses == () and report.chunk_tokens == 1 + len(short)
    reopened = tiny_engine(store=engine.store)
    assert [chunk.text for chunk in reopened.plan(f"Hello there. {short}. {long}. Where?").chunks] == [long]


def test_what_others_stored_and_deleted_is_known_after_a_refresh(tmp_path: Path) -> None:
    prompt = f"{CHUNKS[0]}\n{CHUNKS[1]}\n{ASKED}"
    one, other = (tiny_engine(store=ChunkKVStore(tmp_path)) for _ in range(2))
    gone = one.precompute(CHUNKS[:1])
    assert [chunk.text for chunk in one.plan(prompt).chunks] == CHUNKS[:1]
    other.precompute(CHUNKS[1:])
    other.forget(gone)
    plan = one.refresh().plan(prompt)
    assert [chunk.text for chunk in plan.chunks] == CHUNKS[1:]
    assert plan.misses == (), "what another deleted is not stored again"


# -- threads, refusals ---------------------------------------------------------------------------------------------


def test_answers_say_why_they_ended(engine: SamKVEngine) -> None:
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=3).finish_reason == "length"


def test_threads_get_the_answers_of_serial_calls(engine: SamKVEngine) -> None:
    asked = [(f"Question {n}?", {"method": m, "seed": n, "temperature": t, "max_new_tokens": 8})
             for n, (m, t) in enumerate([("samkv", 0.0), ("full", 0.9), ("reuse", 0.0), ("samkv", 0.9)])]  # fmt: skip
    want = [engine.answer(question, CHUNKS, **options).token_ids for question, options in asked]
    got: dict[int, Any] = {}

    def work(n: int) -> None:
        got[n] = engine.answer(asked[n][0], CHUNKS, **asked[n][1]).token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(4)] == want


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"method": SamKV}, r"SamKV\(\)"),
        ({"method": 7}, "name or an object"),
        ({"method": "full", "keep": 0.5}, "has no keep"),
        ({"keep": 1.5}, "0 to 1"),
        ({"keep": float("nan")}, "0 to 1"),
        ({"beams": 4}, "Unknown generation options: beams"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"temperature": 1.0, "top_k": -3}, "top_k"),
        ({"max_new_tokens": 5000}, "1024 positions"),
    ],
)
def test_what_cannot_be_asked_for_is_a_sentence(engine: SamKVEngine, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SamKVError, match=sentence):
        engine.answer(ASKED, CHUNKS, **options)


def test_one_text_instead_of_a_list_of_chunks_is_a_sentence(engine: SamKVEngine) -> None:
    with pytest.raises(SamKVError, match="list of texts"):
        engine.answer(ASKED, CHUNKS[0])
    with pytest.raises(SamKVError, match="list of texts"):
        engine.precompute(CHUNKS[0])  # a string is a sequence of texts, too: of single letters


def test_a_chunk_longer_than_the_model_is_a_sentence() -> None:
    with pytest.raises(SamKVError, match="split it into smaller"):
        tiny_engine().precompute(["word " * 400])
