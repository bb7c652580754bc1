"""What an answer missed is stored after it: a caller that has the answer does not wait, and nothing is lost."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers.normalizers import Replace

from samkv_rag import ChunkKVStore, SamKVEngine, SamKVError
from tests.models import adapter, byte_tokenizer, tiny_engine
from tests.waiting import SOON, wait_until

CHUNKS = ["Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles."]
ASKED = "Where is Lumen Labs based?"


class HeldStore(ChunkKVStore):
    """A store in memory that stores nothing until `go` is set; `reached` says that it was asked to."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.reached, self.go = threading.Event(), threading.Event()

    def put(self, *args: Any, **options: Any) -> None:
        self.reached.set()
        assert self.go.wait(SOON)
        super().put(*args, **options)


@contextmanager
def held() -> Iterator[tuple[SamKVEngine, HeldStore]]:
    store = HeldStore()
    try:
        yield tiny_engine(store=store), store
    finally:
        store.go.set()


def test_a_streamed_answer_does_not_wait_until_what_it_missed_is_stored() -> None:
    with held() as (engine, store):
        with engine.stream_answer(ASKED, CHUNKS, max_new_tokens=4, timeout=SOON) as stream:
            text = "".join(stream)
        answer = stream.answer
        assert store.reached.wait(SOON) and len(store) == 0
        assert answer.text == text and answer.report.misses and answer.finish_reason == "length"
        store.go.set()
        stream.join(SOON)
        assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).report.misses == ()


def test_what_was_stored_before_an_ingestion_failed_is_known() -> None:
    engine = tiny_engine()
    with pytest.raises(SamKVError, match="split it into smaller ones"):
        engine.precompute([*CHUNKS, "x" * 100_000])
    assert len(engine.store) == len(CHUNKS) == len(engine.plan(f"{CHUNKS[0]} {ASKED}").chunks)


def test_what_was_damaged_is_mended_though_another_chunk_finds_no_room() -> None:
    engine = tiny_engine()
    [key] = engine.precompute(CHUNKS)
    room = engine.store.stats().bytes
    engine = tiny_engine(store=ChunkKVStore(":memory:", max_bytes=room))
    engine._library.unusable.add(key)
    long = "One that is too long. " + CHUNKS[0] * 5
    assert len(engine.answer(ASKED, [*CHUNKS, long], max_new_tokens=2).report.misses) == 2
    [missed] = engine.answer(ASKED, [*CHUNKS, long], max_new_tokens=2).report.misses
    assert long.startswith(missed)


def test_a_text_without_tokens_is_left_out() -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    engine = SamKVEngine.from_pretrained(adapter("llama").model, tokenizer=tokenizer, store=":memory:")
    assert len(engine.precompute(["\u200b", *CHUNKS])) == len(CHUNKS) == len(engine.store)
    assert engine.answer(ASKED, ["\u200b", *CHUNKS], max_new_tokens=2).report.misses == ("\u200b",)


async def test_an_awaited_answer_does_not_wait_either() -> None:
    with held() as (engine, store):
        async with engine.stream_answer(ASKED, CHUNKS, max_new_tokens=4) as stream:
            answer = await stream.wait()
        assert len(store) == 0 and "".join([piece async for piece in stream]) == answer.text


def test_closing_the_engine_waits_until_it_is_stored() -> None:
    with held() as (engine, store):
        assert list(engine.stream_answer(ASKED, CHUNKS, max_new_tokens=1)) is not None
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(0.1)
        assert store.reached.wait(SOON) and closing.is_alive()
        store.go.set()
        closing.join(SOON)
        assert len(store) == 1


@pytest.mark.parametrize("way", ["answer", "stream"])
def test_what_goes_wrong_behind_an_answer_is_logged_and_does_not_cost_it(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    engine = tiny_engine()
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids
    engine.forget(engine.keys(CHUNKS))
    monkeypatch.setattr(engine.adapter, "ingest", out_of_memory)
    with caplog.at_level(logging.WARNING):
        if way == "answer":
            answer = engine.answer(ASKED, CHUNKS, max_new_tokens=4)
        else:
            stream = engine.stream_answer(ASKED, CHUNKS, max_new_tokens=4)
            assert "".join(stream) == stream.answer.text
            answer = stream.answer
            stream.join(SOON)
    assert answer.token_ids == want
    assert "What an answer missed could not be stored: RuntimeError: out of memory" in caplog.text


def test_a_cancelled_answer_stores_nothing() -> None:
    engine, steps = tiny_engine(), list[int]()
    handle = engine.adapter.model.get_input_embeddings().register_forward_hook(lambda *_: steps.append(1))
    try:
        stream = engine.stream_answer(ASKED, CHUNKS, max_new_tokens=600)
        wait_until(lambda: len(steps) > 3)
        stream.close()
    finally:
        handle.remove()
    stream.join(SOON)
    assert stream.answer.finish_reason == "cancelled" and len(engine.store) == 0


LONG = "Lumen Labs is a company in Oslo that makes lamps. " * 4


def test_a_cut_chunk_of_another_model_is_no_chunk_of_ours() -> None:
    store = ChunkKVStore(":memory:")
    plain, small = tiny_engine(store=store), tiny_engine(store=store, kv_dtype="int8")
    plain.precompute([LONG])
    report = small.generate(f"{LONG[:120]}\n{ASKED}", max_new_tokens=1).report
    assert report.misses == () and report.chunk_tokens == 0
    assert len(store) == 1


def test_a_cut_chunk_is_found_beside_another_models_cache_of_its_text() -> None:
    store = ChunkKVStore(":memory:")
    engines = [tiny_engine(store=store, kv_dtype=kv_dtype) for kv_dtype in ("model", "int8")]
    for engine in engines:
        engine.precompute([LONG])
    for engine in [tiny_engine(store=store, kv_dtype=kv_dtype) for kv_dtype in ("model", "int8")]:
        plan = engine.plan(f"{LONG[:120]}\n{ASKED}")
        assert [chunk.key for chunk in plan.chunks] == engine.keys([LONG]) and plan.misses == ()


def test_a_cut_chunk_that_is_damaged_is_a_miss_that_stores_nothing(tmp_path: Path) -> None:
    engine = tiny_engine(store=ChunkKVStore(tmp_path), method="reuse")
    (key,) = engine.precompute([LONG])
    path = next(tmp_path.rglob(f"{key}.kv.*"))
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data), 64):  # every block
        data[at] ^= 4
    path.write_bytes(data)
    report = engine.generate(f"{LONG[:120]}\n{ASKED}", max_new_tokens=1).report
    assert len(report.misses) == 1 and report.chunk_tokens == 0
    assert list(engine.store.keys()) == [key]
