"""Answers in pieces: the same text, cancelled within a token, errors passed on, stop strings never shown."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.methods import Prepared, Run
from samkv_rag.stream import AnswerStream
from samkv_rag.types import Answer
from tests.models import tiny_engine
from tests.waiting import wait_until

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen before she moved to the coast, where she lives now.",
]
ASKED = "Where is Lumen Labs based?"


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute(CHUNKS)
    return engine


@contextmanager
def stepping(engine: SamKVEngine) -> Iterator[list[int]]:
    """A list that grows with every pass of the model."""
    steps: list[int] = []
    handle = engine.adapter.model.get_input_embeddings().register_forward_hook(lambda *_: steps.append(1))
    try:
        yield steps
    finally:
        handle.remove()


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "samkv-answer"]


@pytest.mark.parametrize("seed", range(8))
def test_the_pieces_of_a_stream_are_the_answer(engine: SamKVEngine, seed: int) -> None:
    sampling = {"max_new_tokens": 24, "temperature": 1.5, "seed": seed}
    stream = engine.stream_answer(ASKED, CHUNKS, **sampling)
    assert "".join(stream) == stream.answer.text == engine.answer(ASKED, CHUNKS, **sampling).text
    raw = engine.stream(f"{CHUNKS[0]}\n{ASKED}", **sampling)
    assert "".join(raw) == raw.answer.text == engine.generate(f"{CHUNKS[0]}\n{ASKED}", **sampling).text


def test_white_space_at_the_end_of_an_answer_is_not_streamed(engine: SamKVEngine) -> None:
    sampling: dict[str, Any] = {"temperature": 1.5, "seed": 1}
    ids = engine.answer(ASKED, CHUNKS, max_new_tokens=300, **sampling).token_ids
    blank = set(engine.tokenizer(" \n")["input_ids"])
    ends = [count for count, token in enumerate(ids, 1) if token in blank and count > 5]
    assert ends, "an answer that ends in white space is needed here"
    stream = engine.stream_answer(ASKED, CHUNKS, max_new_tokens=ends[0], **sampling)
    assert "".join(stream) == stream.answer.text
    assert not stream.answer.text.endswith((" ", "\n"))


def test_closing_a_stream_stops_within_a_token_and_frees_the_engine(engine: SamKVEngine) -> None:
    with stepping(engine) as steps:
        stream = engine.stream_answer(ASKED, CHUNKS, max_new_tokens=600)
        wait_until(lambda: len(steps) > 6)
        stream.cancel()
        seen = len(steps)
        stream.close()
        assert len(steps) <= seen + 2
    assert stream.answer.finish_reason == "cancelled"
    assert 0 < len(stream.answer.token_ids) < 600
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=1).token_ids


async def awaited(stream: AnswerStream) -> Answer:
    return await stream.wait()


def test_there_may_be_any_amount_of_time(engine: SamKVEngine) -> None:
    for seconds in (math.inf, 1e30, 10**400):
        some, same = (engine.stream_answer(ASKED, CHUNKS, max_new_tokens=8, timeout=seconds) for _ in range(2))
        assert asyncio.run(awaited(some)).text == "".join(same) == same.answer.text


@pytest.mark.parametrize("turns", range(5))
def test_a_cancelled_task_ends_though_a_piece_comes_at_the_same_time(turns: int) -> None:
    async def main() -> bool:
        go, seen = threading.Event(), threading.Event()

        def job(emit: Any, gone: Any, finish: Any) -> Answer:
            go.wait()
            emit("one ")
            while not gone():
                time.sleep(0.001)
            seen.set()
            raise SamKVError("cancelled")

        task = asyncio.create_task(awaited(AnswerStream(job, timeout=60)))
        await asyncio.sleep(0.05)
        go.set()
        time.sleep(0.05)  # the piece is there before the loop goes on
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=10)
        return task.cancelled() and seen.wait(10)

    assert asyncio.run(main())


def test_a_time_that_is_none_is_refused(engine: SamKVEngine) -> None:
    for wrong in ("10", True, math.nan):
        with pytest.raises(SamKVError, match="timeout must be a number of seconds or None, not"):
            engine.stream_answer(ASKED, CHUNKS, timeout=wrong)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Failing:
    """A method that fails."""

    name = "failing"

    def prepare(self, run: Run) -> Prepared:
        raise RuntimeError("out of luck")


def test_an_error_surfaces_and_leaves_the_engine_usable(engine: SamKVEngine) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.answer(ASKED, CHUNKS, method=Failing())
    stream = engine.stream_answer(ASKED, CHUNKS, method=Failing())
    with pytest.raises(RuntimeError, match="out of luck"):
        list(stream)
    with pytest.raises(RuntimeError, match="out of luck"):
        _ = stream.answer
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=1).token_ids


class Heavy(Failing):
    """Fails while it holds something large."""

    def __init__(self) -> None:
        self.seen: weakref.ref[torch.Tensor] | None = None

    def prepare(self, run: Run) -> Prepared:
        keys = torch.zeros(9)
        self.seen = weakref.ref(keys)
        raise RuntimeError(f"out of luck with {len(keys)}")


def test_an_error_that_somebody_keeps_keeps_no_memory(engine: SamKVEngine) -> None:
    failing = Heavy()
    stream = engine.stream_answer(ASKED, CHUNKS, method=failing)
    with pytest.raises(RuntimeError, match="out of luck") as kept:
        list(stream)
    assert kept.value is not None and failing.seen is not None
    wait_until(lambda: failing.seen() is None)


def test_an_answer_ends_before_its_stop_string(engine: SamKVEngine) -> None:
    sampling: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0, "seed": 5}
    whole = engine.answer(ASKED, CHUNKS, **sampling)
    pairs = [whole.text[at : at + 2] for at in range(8, len(whole.text) - 1)]
    stop = next(pair for pair in pairs if pair.isascii() and pair.isprintable())
    for given in ([stop], ["never", stop], stop):
        cut = engine.answer(ASKED, CHUNKS, stop=given, **sampling)
        assert cut.text == whole.text[: whole.text.index(stop)].strip()
        assert cut.finish_reason == "stop"
        assert len(cut.token_ids) < 40, "decoding stops there, too"
        assert "".join(engine.stream_answer(ASKED, CHUNKS, stop=given, **sampling)) == cut.text


async def test_a_task_cancelled_while_it_iterates_cancels_the_answer(engine: SamKVEngine) -> None:
    with stepping(engine) as steps:
        stream = engine.stream_answer(ASKED, CHUNKS, max_new_tokens=600)

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        while len(steps) < 6:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(stream.join, 10)
    assert not running() and stream.answer.finish_reason == "cancelled"


async def test_a_stream_is_closed_by_async_with(engine: SamKVEngine) -> None:
    with stepping(engine) as steps:
        async with engine.stream_answer(ASKED, CHUNKS, max_new_tokens=600) as stream:
            while len(steps) < 6:
                await asyncio.sleep(0.001)
    await asyncio.to_thread(stream.join, 10)
    assert not running() and stream.answer.finish_reason == "cancelled"


@pytest.mark.slow
def test_python_ends_while_a_stream_that_nobody_closed_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(
        "from samkv_rag import SamKVEngine\n"
        "engine = SamKVEngine.from_pretrained('bundled', store=':memory:')\n"
        "for piece in engine.stream('Question: Who?', max_new_tokens=3000):\n"
        "    break\n"
        "print('left')\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "left"), done.stderr
