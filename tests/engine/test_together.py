"""Many callers, one engine: each gets the answer it would get alone, whichever others come, leave or fail."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.model.cache import SlotCache
from samkv_rag.stream import AnswerStream
from samkv_rag.types import Answer
from tests.models import tiny_engine
from tests.waiting import SOON, wait_until

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen before she moved to the coast, where she lives now.",
    "The museum of old lamps opens on every second Sunday.",
]
ASKED = "Where is Lumen Labs based?"
LONG = 600


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return met(tiny_engine())


def met(engine: SamKVEngine) -> SamKVEngine:
    """The engine, after it was given the chunks and one prompt: what its prompts begin with is known."""
    engine.precompute(CHUNKS)
    engine.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=1)
    return engine


def at_once(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


@contextmanager
def passes(engine: SamKVEngine) -> Iterator[list[int]]:
    """The number of tokens of every pass of the model."""
    sizes: list[int] = []
    embed = engine.adapter.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].numel()))
    try:
        yield sizes
    finally:
        handle.remove()


@contextmanager
def long_answer(engine: SamKVEngine, **options: Any) -> Iterator[AnswerStream]:
    """A stream of 600 tokens, some of which have been decoded."""
    with engine.stream_answer(ASKED, CHUNKS, max_new_tokens=LONG, **options) as stream:
        with passes(engine) as sizes:
            wait_until(lambda: len(sizes) > 5 and sizes[-1] == 1)
        yield stream


# -- the same answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing:
    """A method that fails."""

    name = "failing"

    def prepare(self, run: Run) -> Prepared:
        raise RuntimeError("out of luck")


@dataclass
class Asked:
    """One call of the stress test and what came of it. `leaves` is the number of pieces after which it is closed."""

    question: str
    options: dict[str, Any]
    leaves: int | None
    answer: Answer | None = None
    error: BaseException | None = None

    def ask(self, engine: SamKVEngine) -> None:
        try:
            if self.leaves is None:
                self.answer = engine.answer(self.question, CHUNKS, **self.options)
                return
            with engine.stream_answer(self.question, CHUNKS, **self.options) as stream:
                for _ in zip(range(self.leaves), stream, strict=False):
                    pass
            self.answer = stream.answer
        except (RuntimeError, SamKVError) as error:
            self.error = error


def random_calls(seed: int, count: int) -> list[Asked]:
    rng = random.Random(seed)
    methods: list[Method | str] = ["full", "reuse", SamKV(keep=0.3), SamKV(keep=1.0), Failing()]
    calls = []
    for number in range(count):
        options: dict[str, Any] = {
            "method": rng.choice(methods), "max_new_tokens": rng.choice([1, 2, 9, 30]),
            "temperature": rng.choice([0.0, 1.1]), "seed": number, "stop": rng.choice([(), ("e",), ("never", "zq")]),
        }  # fmt: skip
        calls.append(Asked(f"Question {number % 4}?", options, rng.choice([None, None, 0, 2])))
    return calls


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("places", [1, 3, 8])
def test_whoever_comes_leaves_or_fails_the_others_get_their_answers(seed: int, places: int) -> None:
    engine = tiny_engine(max_batch=places)
    engine.precompute(CHUNKS)
    calls = random_calls(seed, 20)
    todo = list(calls)

    def caller() -> None:
        while todo:
            try:
                call = todo.pop()
            except IndexError:
                return
            call.ask(engine)

    at_once(*[caller] * 7)
    for call in calls:
        failing = isinstance(call.options["method"], Failing)
        if call.error is not None or failing:
            left = call.leaves == 0 and "cancelled before its turn" in str(call.error)
            assert left or (failing and "out of luck" in str(call.error))
            continue
        want = engine.answer(call.question, CHUNKS, **call.options)
        assert call.answer is not None
        got = call.answer.token_ids
        if call.answer.finish_reason == "cancelled":
            assert call.leaves is not None
            assert got == want.token_ids[: len(got)]
        else:
            assert (got, call.answer.text) == (want.token_ids, want.text)


def test_answers_asked_for_together_share_their_steps(engine: SamKVEngine) -> None:
    def call(number: int) -> Callable[[], None]:
        return lambda: engine.answer(f"Question {number}?", CHUNKS, method="reuse", max_new_tokens=40) and None

    with passes(engine) as sizes:
        at_once(*[call(number) for number in range(6)])
    decoding = [size for size in sizes if size <= 6]
    assert sum(decoding) == 6 * 39, "the pass over a prompt says the first token"
    assert max(decoding) == 6
    assert len(decoding) < 6 * 40 / 2


def test_one_at_a_time_shares_nothing() -> None:
    engine = met(tiny_engine(max_batch=1))
    with passes(engine) as sizes:
        at_once(*[lambda: engine.answer(ASKED, CHUNKS, method="reuse", max_new_tokens=10)] * 3)
    assert [size for size in sizes if size <= 6] == [1] * 27, "the pass over a prompt says the first token"


def test_no_batch_at_all_is_a_sentence() -> None:
    with pytest.raises(SamKVError, match="max_batch"):
        tiny_engine(max_batch=0)


# -- who waits for whom --------------------------------------------------------------------------------------------


def test_a_newcomer_is_answered_while_a_long_answer_goes_on(engine: SamKVEngine) -> None:
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=LONG).token_ids
    with long_answer(engine) as stream:
        with passes(engine) as sizes:
            engine.answer("A short question?", CHUNKS, max_new_tokens=1)
        assert not stream._done
        assert sizes[:3] != [1, 1, 1], "one step may be under way, and then it is the newcomer's turn"
        assert stream.answer.token_ids == want


def test_ingestion_waits_for_the_answer_under_way_and_later_questions_do_not_wait_for_it(engine: SamKVEngine) -> None:
    keys: list[str] = []
    with long_answer(engine) as stream:
        thread = threading.Thread(target=lambda: keys.extend(engine.precompute(["A text that is new to the store."])))
        thread.start()
        wait_until(lambda: len(engine._turn._waiting) > 0)
        engine.answer("A short question?", CHUNKS, max_new_tokens=2)
        assert keys == []
        stream.close()
        thread.join(SOON)
    assert engine.forget(keys) == 1


def test_what_was_missed_is_stored_again_without_waiting_for_others(engine: SamKVEngine) -> None:
    with long_answer(engine) as stream:
        new = "A text that nobody has ever stored before this very question."
        assert engine.answer(ASKED, [new], max_new_tokens=2).report.misses == (new[:60],)
        assert not stream._done
        assert engine.forget(engine.keys([new])) == 1


# -- leaving -------------------------------------------------------------------------------------------------------


def test_a_stream_closed_while_it_waits_leaves_the_line() -> None:
    engine = tiny_engine(max_batch=1)
    engine.precompute(CHUNKS)
    with long_answer(engine) as stream:
        waiting = engine.stream_answer(ASKED, CHUNKS)
        waiting.close()
        assert not stream._done
        with pytest.raises(SamKVError, match="cancelled before its turn"):
            _ = waiting.answer


def caches() -> list[weakref.ref[SlotCache]]:
    return [weakref.ref(each) for each in gc.get_objects() if type(each) is SlotCache]


@pytest.mark.parametrize("how", ["close", "timeout", "end"])
def test_a_request_that_has_left_leaves_no_cache_behind(engine: SamKVEngine, how: str) -> None:
    gc.collect()
    before, prompt = len(caches()), f"{CHUNKS[0]}\n{ASKED}"
    with long_answer(engine) as other:
        options = {"max_new_tokens": 3 if how == "end" else LONG, "timeout": 0.3 if how == "timeout" else None}
        stream = engine.stream(prompt, **options)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                _ = stream.answer
        if how == "close":
            wait_until(lambda: len(caches()) == before + 2)
            stream.close()
        stream._thread.join(SOON)
        gc.collect()
        assert not other._done
        assert len(caches()) == before + 1, "the other's"
    gc.collect()
    assert len(caches()) == before


def test_who_drives_can_be_interrupted_and_another_takes_over(engine: SamKVEngine, monkeypatch: Any) -> None:
    """Ctrl-C reaches the main thread, which is the one that takes the steps for the others, too."""
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=60).token_ids
    got: list[Answer] = []
    layer = engine.adapter.decoder.layers[2]
    step = engine.adapter.loop.step
    main = threading.main_thread()

    def interrupt(module: Any, inputs: Any, output: Any) -> None:
        if threading.current_thread() is main and len(output) == 2:
            raise KeyboardInterrupt

    handle = layer.register_forward_hook(interrupt)
    thread = threading.Thread(target=lambda: got.append(engine.answer(ASKED, CHUNKS, max_new_tokens=60)))
    monkeypatch.setattr(engine.adapter.loop, "step", lambda rows: (thread.is_alive() or thread.start(), step(rows)))
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.answer(ASKED, CHUNKS, max_new_tokens=LONG)
    finally:
        handle.remove()
    thread.join(SOON)
    assert got[0].token_ids == want
