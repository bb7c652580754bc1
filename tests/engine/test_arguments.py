"""What an engine cannot be made with, or asked, is refused in a sentence; what is asked is read once."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine, SamKVError
from tests.models import adapter, byte_tokenizer, tiny_engine
from tests.waiting import SOON, wait_until

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "The ferry to Stenness leaves on Tuesdays at nine; on other days there is a bus, which takes an hour more.",
]
ASKED = "Where is Lumen Labs based?"

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_batch": math.nan}, "max_batch must be a whole number, 1 or more, not nan"),
    ({"max_batch": "8"}, "max_batch must be a whole number"),
    ({"max_batch": 0}, "max_batch must be"),
    ({"min_kept_tokens": -5}, "min_kept_tokens must be a whole number, 0 or more"),
    ({"min_kept_tokens": 1.5}, "min_kept_tokens must be"),
    ({"min_kept_tokens": None}, "min_kept_tokens must be"),
    ({"namespace": None}, "The namespace must be text, not None"),
    ({"namespace": "\ud800"}, "The namespace holds half of a surrogate pair"),
    ({"store": ""}, "named by a folder, or \":memory:\", not by ''"),
    ({"store": 5}, "not by 5"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_what_an_engine_cannot_be_made_with_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SamKVError) as refusal:
        SamKVEngine.from_pretrained(adapter("llama").model, byte_tokenizer(), **{"store": ":memory:"} | options)
    assert words in str(refusal.value)


def test_a_size_that_is_none_is_refused() -> None:
    for wrong in (math.nan, "1GB", -1):
        with pytest.raises(ValueError, match="max_bytes must be None or at least 0"):
            ChunkKVStore(max_bytes=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["answer", "stream_answer"])
def test_chunks_that_can_be_read_once_survive_a_damaged_cache(way: str, tmp_path: Path) -> None:
    """A plan is made again when an entry proves unusable."""
    answers = []
    for once in (False, True):
        engine = tiny_engine(store=ChunkKVStore(tmp_path / str(once)))
        engine.precompute(CHUNKS)
        for file in (tmp_path / str(once)).rglob("*.kv.safetensors"):
            file.write_bytes(bytes(byte ^ (at % 97 == 96) for at, byte in enumerate(file.read_bytes())))
        made = getattr(engine, way)(ASKED, iter(CHUNKS) if once else CHUNKS, keep=0.3, max_new_tokens=6)
        answers.append(made if way == "answer" else made.answer)
    assert answers[0].token_ids == answers[1].token_ids
    assert [len(answer.report.misses) for answer in answers] == [2, 2]


def test_what_is_asked_does_not_change_with_the_callers_list() -> None:
    engine = tiny_engine(chat=True)
    messages = [{"role": "user", "content": ASKED}]
    want = engine.generate(messages, max_new_tokens=4).token_ids
    with engine._turn.step():  # the model is busy
        stream = engine.stream(messages, max_new_tokens=4)
        messages[:] = []
    assert stream.answer.token_ids == want
    assert engine.generate(iter([{"role": "user", "content": ASKED}]), max_new_tokens=4).token_ids == want  # type: ignore[arg-type]


def test_a_request_that_waits_while_its_engine_is_closed_says_so(tmp_path: Path) -> None:
    engine = SamKVEngine.from_pretrained(adapter("llama").model, byte_tokenizer(), tmp_path / "kv")
    engine.load()
    closing = threading.Thread(target=engine.close)
    with engine._turn.step():
        stream = engine.stream_answer(ASKED, CHUNKS)
        wait_until(lambda: bool(engine._turn._waiting))
        closing.start()
        wait_until(lambda: engine._closed)
    with pytest.raises(SamKVError, match="This engine is closed: make a new one"):
        _ = stream.answer
    closing.join(SOON)


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    engine = tiny_engine()
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids
    for temperature in (1e-300, 1e-40, 1e-7):
        assert engine.answer(ASKED, CHUNKS, temperature=temperature, max_new_tokens=4).token_ids == want


def test_a_stop_text_is_looked_for_in_the_answer_alone() -> None:
    """Prompts end in a line break, and some answers begin with one."""
    engine = tiny_engine()
    forced = {"grammar": 'start: ": hello world"', "max_new_tokens": 30}
    assert engine.generate("abc User", stop=["User:"], **forced).text == ": hello world"
    assert engine.generate("abc User", stop=[" hello"], **forced).text == ":"
    assert engine.generate("abc User", stop=[": h"], **forced).text == ""


def test_content_that_is_no_text_is_refused() -> None:
    for content in (5, {"image": "x.png"}, b"bytes", [5]):
        with pytest.raises(SamKVError, match="Only text content is supported"):
            tiny_engine(chat=True).generate([{"role": "user", "content": content}], method=SamKV())


@pytest.mark.parametrize(
    ("named", "said"), [("sam", "prophetkv"), ("samkv:recompute=0.33", r"such as SamKV\(recompute")]
)
def test_an_unknown_method_names_those_there_are(named: str, said: str) -> None:
    with pytest.raises(SamKVError, match=f"There is no method '{named}'; choose one of: .*{said}"):
        tiny_engine(method=named).answer("Where?", [])
