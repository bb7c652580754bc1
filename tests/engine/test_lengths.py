"""What does not fit into a model's positions is refused before anything is computed."""

from __future__ import annotations

import pytest

from samkv_rag import SamKVEngine, SamKVError
from tests.models import tiny_engine

CHUNK = "The mill is in Orrin, where Ana Petrov lived from 1987 on."
ASKED = "Where is the mill?"


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.precompute([CHUNK])
    return engine


def test_prompt_and_answer_must_fit(engine: SamKVEngine) -> None:
    room = 1024 - engine.plan(f"{CHUNK}\n{ASKED}").n_tokens
    assert engine.generate(f"{CHUNK}\n{ASKED}", max_new_tokens=room, stop=" ").token_ids
    with pytest.raises(SamKVError, match=f"up to {room + 1} more were asked for, but the model has 1024 positions"):
        engine.generate(f"{CHUNK}\n{ASKED}", max_new_tokens=room + 1)


def test_a_question_that_is_not_in_the_prompt_must_fit_behind_it(engine: SamKVEngine) -> None:
    room = 1024 - engine.plan(CHUNK).n_tokens
    assert engine.generate(CHUNK, question="?" * room, max_new_tokens=1).token_ids
    with pytest.raises(SamKVError, match=f"the question, which is not in it, {room + 1}, .* ask a shorter question"):
        engine.generate(CHUNK, question="?" * (room + 1), max_new_tokens=1)
