"""From LangChain messages to turns of chat templates."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage

from langchain_samkv import ChatSamKV
from langchain_samkv.messages import Roles, converted, question_of
from samkv_rag import SamKVEngine, SamKVError
from tests.models import byte_tokenizer

CHUNK = "Lumen Labs was founded in 1998 and has its office in Harrow, next to the old mill."

CALL = {"name": "search", "args": {"query": "é"}, "id": "1", "type": "tool_call"}
LOOP: list[BaseMessage] = [
    SystemMessage("S"),
    HumanMessage("Q"),
    AIMessage([{"type": "text", "text": "T"}, {"type": "tool_use", "id": "1"}], tool_calls=[CALL]),
    ToolMessage("R", tool_call_id="1", name="search"),
]
CALLED = 'T\n<tool_call>\n{"name": "search", "arguments": {"query": "é"}}\n</tool_call>'


def test_messages_for_a_template_that_knows_all_roles() -> None:
    assert converted(LOOP, Roles(), "I") == [
        {"role": "system", "content": "S\n\nI"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": CALLED},
        {"role": "tool", "content": "R", "tool_call_id": "1", "name": "search"},
    ]
    assert question_of(LOOP, Roles()) is None


def test_messages_for_a_template_that_knows_user_and_assistant_only() -> None:
    roles = Roles(system=False, tool=False)
    assert converted([*LOOP, HumanMessage("And?")], roles, "I") == [
        {"role": "user", "content": "S\n\nI\n\nQ"},
        {"role": "assistant", "content": CALLED},
        {"role": "user", "content": "<tool_response>\nR\n</tool_response>\n\nAnd?"},
    ]
    assert question_of(LOOP, roles) == "Q"


def test_neighbours_are_merged_and_names_kept_where_they_agree() -> None:
    turns = converted([HumanMessage("a", name="Eve"), HumanMessage("b", name="Eve"), AIMessage("c")], Roles())
    assert turns[0] == {"role": "user", "content": "a\n\nb", "name": "Eve"}
    turns = converted([HumanMessage("a", name="Eve"), HumanMessage("b")], Roles())
    assert turns == [{"role": "user", "content": "a\n\nb"}]


def test_content_parts_are_put_together_without_a_seam() -> None:
    parts: list[Any] = ["Lumen", {"type": "text", "text": " Labs"}]
    assert converted([HumanMessage(parts)], Roles())[0]["content"] == "Lumen Labs"


def test_a_refusal_is_what_the_assistant_said() -> None:
    refusal: list[Any] = [{"type": "refusal", "refusal": "Not in the passages."}]
    assert converted([AIMessage(refusal)], Roles()) == [{"role": "assistant", "content": "Not in the passages."}]
    with pytest.raises(SamKVError, match="The human message holds a part of type 'refusal'"):
        converted([HumanMessage(refusal)], Roles())


def test_what_is_not_text_is_refused() -> None:
    image: list[Any] = [{"type": "image", "url": "https://example.org/a.png"}]
    with pytest.raises(SamKVError, match="a part of type 'image', and the model reads text only; remove it"):
        converted([HumanMessage(image)], Roles())
    with pytest.raises(SamKVError, match="remove message cannot be shown"):
        converted([RemoveMessage(id="1")], Roles())


@pytest.mark.parametrize(
    "refused, roles",
    [
        ("system", Roles(system=False)),
        ("tool", Roles(tool=False)),
    ],
)
@pytest.mark.parametrize("how", ["{{ raise_exception('no') }}", ""])
def test_roles_are_found_by_rendering(refused: str, roles: Roles, how: str) -> None:
    tokenizer = deepcopy(byte_tokenizer(chat=True))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == '" + refused + "' %}" + how + "{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )  # fmt: skip
    assert Roles.of(tokenizer) == roles


def test_chunks_are_found_in_tool_messages_of_any_template(engine: SamKVEngine) -> None:
    engine.precompute([CHUNK])
    llm = ChatSamKV(engine=engine, max_tokens=4)
    loop = [HumanMessage("Q"), AIMessage("", tool_calls=[CALL]), ToolMessage(CHUNK, tool_call_id="1")]
    for roles in (Roles(), Roles(tool=False)):
        llm.shared_engines._roles[llm.engine] = roles
        answer = llm.invoke(loop)
        assert answer.response_metadata["samkv"]["chunk_tokens"] > 0
