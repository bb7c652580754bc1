"""Whatever is not text is refused in a sentence, before a model is asked."""

from __future__ import annotations

from typing import Any

import pytest

from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.prompt.checks import require_text
from tests.models import tiny_engine

CALLS: dict[str, Any] = {
    "no chunks": lambda e: e.answer("What?", None),
    "one chunk": lambda e: e.answer("What?", "text"),
    "a chunk of None": lambda e: e.answer("What?", ["text", None]),
    "a chunk of bytes": lambda e: e.answer("What?", [b"text"]),
    "no question": lambda e: e.answer(None, ["text"]),
    "no prompt": lambda e: e.generate(None),
    "a message that is text": lambda e: e.generate(["hello"]),
    "a message that is a pair": lambda e: e.generate([("user", "hi")]),
    "one message": lambda e: e.generate({"role": "user", "content": "hi"}),
    "no messages": lambda e: e.generate([]),
    "no text to cache": lambda e: e.precompute([None]),
    "one text to cache": lambda e: e.precompute("text"),
    "half a character": lambda e: e.answer("What?", ["\ud800"]),
    "half a character in a message": lambda e: e.generate([{"role": "user", "content": "\ud800"}]),
    "half a character in a part": lambda e: e.generate([{"role": "user", "content": [{"text": "\ud800"}]}]),
    "no length": lambda e: e.answer("What?", ["text"], max_new_tokens=None),
    "a length in text": lambda e: e.answer("What?", ["text"], max_new_tokens="5"),
    "half a token": lambda e: e.answer("What?", ["text"], max_new_tokens=1.5),
    "a seed in text": lambda e: e.answer("What?", ["text"], seed="a"),
    "keep in text": lambda e: e.answer("What?", ["text"], keep="0.5"),
}


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return tiny_engine()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_text_is_refused_in_a_sentence(engine: SamKVEngine, name: str) -> None:
    with pytest.raises(SamKVError, match=r"(must be|must be a list|is text or|no messages|no text)"):
        CALLS[name](engine)


def test_text_is_handed_on() -> None:
    assert require_text("naïve 🙂", "It") == "naïve 🙂"
