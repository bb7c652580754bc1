"""Thoughts are told from words, in whatever pieces an answer comes, and chat templates get their variables."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag import ChunkKVStore, SamKVEngine, SamKVError
from samkv_rag.prompt.reasoning import CHANNELS, ReasoningReader, reader_of, split
from samkv_rag.prompt.template import Conversation
from tests.models import adapter, byte_tokenizer, thinking_tokenizer

CASES = {
    "thought": (False, "<think>\nhm, so\n</think>\n\nParis.", "hm, so", "Paris."),
    "blanks before it": (False, "\n <think>hm</think>Paris.", "hm", "Paris."),
    "nothing thought": (False, "<think>\n\n</think>\n\nParis.", "", "Paris."),
    "opened by the template": (True, "hm, so\n</think>\n\nParis. </think>", "hm, so", "Paris. </think>"),
    "cut off in a thought": (False, "<think>hm, so </thi", "hm, so </thi", ""),
    "cut off behind it": (False, "<think>hm</think>\n\n", "hm", ""),
    "words alone": (False, "It is <think> or </think>, they say.", "", "It is <think> or </think>, they say."),
    "cut off in the beginning": (False, "<thi", "", "<thi"),
    "blank words": (False, "  Paris", "", "  Paris"),
    "nothing": (False, "", "", ""),
}


@pytest.mark.parametrize("inside, text, thought, said", CASES.values(), ids=CASES)
def test_thoughts_are_told_from_words(inside: bool, text: str, thought: str, said: str) -> None:
    assert split(text, ReasoningReader(inside)) == (thought, said)
    assert split(text, None) == ("", text)


@pytest.mark.parametrize(
    "text, thought, said",
    [
        ("analysisThe user asks.assistantfinalIt is finally Paris.", "The user asks.", "It is finally Paris."),
        ("finalParis.", "", "Paris."),
        ("Finally, Paris.", "", "Finally, Paris."),
        ("analysisThe user", "The user", ""),
    ],
)
def test_channels_are_thoughts_and_answers(text: str, thought: str, said: str) -> None:
    for pieces in ([text], list(text)):
        reader = ReasoningReader(marks=CHANNELS)
        found = [piece for part in pieces for piece in reader.feed(part)] + [*reader.end()]
        assert "".join(piece.text for piece in found if piece.thought) == thought
        assert "".join(piece.text for piece in found if not piece.thought) == said


@given(st.sampled_from(list(CASES.values())), st.lists(st.integers(0, 50)))
def test_pieces_make_no_difference(case: tuple[bool, str, str, str], cuts: list[int]) -> None:
    inside, text, thought, said = case
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader = ReasoningReader(inside)
    pieces = [piece for left, right in pairwise(places) for piece in reader.feed(text[left:right])] + [*reader.end()]
    assert all(piece.text for piece in pieces)
    assert "".join(piece.text for piece in pieces if not piece.thought) == said
    assert "".join(piece.text for piece in pieces if piece.thought) == thought


def test_a_template_says_whether_there_are_thoughts_and_who_opens_them() -> None:
    def inside(tokenizer: Any, **options: Any) -> bool | None:
        reader = reader_of(tokenizer, options)
        return reader and split("hm</think>Paris", reader)[0] == "hm"

    assert inside(byte_tokenizer()) is inside(byte_tokenizer(chat=True)) is None
    assert inside(thinking_tokenizer()) is False
    assert inside(thinking_tokenizer(), enable_thinking=False) is False
    assert inside(thinking_tokenizer(opens=True)) is True
    channels = copy.deepcopy(byte_tokenizer(chat=True))
    channels.chat_template += "{# <|channel|>final<|message|> #}"
    reader = reader_of(channels, {})
    assert split("analysishmassistantfinalParis", reader) == ("hm", "Paris")


# -- the template's variables --------------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "Why?"}]
OFF = "<think>\n\n</think>\n\n"


def engine(**options: Any) -> SamKVEngine:
    return SamKVEngine.from_pretrained(
        adapter("llama").model, thinking_tokenizer(), ChunkKVStore(":memory:"), **options
    )  # fmt: skip


def shown(plan: Any) -> str:
    return "".join(segment.text for segment in plan.segments)


def test_an_answer_of_a_few_words_is_given_without_thinking_unless_asked_for() -> None:
    passages = ["Lumen Labs is in Oslo, they say."]
    assert shown(engine().plan_question("Why?", passages)).endswith(OFF)
    thinking = engine(chat_template_kwargs={"enable_thinking": True})
    assert not shown(thinking.plan_question("Why?", passages)).endswith(OFF)


def test_prompts_of_messages_think_unless_the_engine_or_the_prompt_says_otherwise() -> None:
    at_once = engine(chat_template_kwargs={"enable_thinking": False})
    assert not shown(engine().plan(ASKED)).endswith(OFF)
    assert shown(at_once.plan(ASKED)).endswith(OFF)
    assert shown(engine().plan(Conversation(ASKED, template={"enable_thinking": False}))).endswith(OFF)
    assert not shown(at_once.plan(Conversation(ASKED, template={"enable_thinking": True}))).endswith(OFF)


def test_what_is_no_dictionary_is_an_error() -> None:
    with pytest.raises(SamKVError, match="chat_template_kwargs is a dictionary"):
        engine(chat_template_kwargs="off")


def test_a_variable_that_the_tokenizer_takes_for_itself_is_an_error() -> None:
    with pytest.raises(SamKVError, match="refused"):
        engine(chat_template_kwargs={"tokenize": True}).plan(ASKED)


# -- answers of a few words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, thought, said",
    [
        ("<think>\nhm, so\n</think>\n\nIn Oslo.", "hm, so", "In Oslo."),
        ("In Oslo. ", "", "In Oslo."),
        ("<thi", "", "<thi"),
    ],
)
def test_answers_from_passages_are_what_is_said(written: str, thought: str, said: str) -> None:
    grammar = f"%llguidance {{}}\nstart: {json.dumps(written)}\n"
    asked = ("Where is it?", ["Lumen Labs is in Oslo, they say."])
    with engine() as thinker:
        answer = thinker.answer(*asked, grammar=grammar)
        assert (answer.text, answer.thought) == (said, thought)
        with thinker.stream_answer(*asked, grammar=grammar) as stream:
            assert "".join(stream) == said and stream.answer.thought == thought
        assert thinker.generate(ASKED, grammar=grammar).text == written, "what the model writes, as it is"
