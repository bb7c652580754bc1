"""Messages of one role become one, as many chat templates require."""

from __future__ import annotations

from typing import Any

from samkv_rag.prompt.template import merged


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_neighbours_of_one_role_become_one_message() -> None:
    given = [said("system", "a"), said("system", ""), said("user", "b"), said("user", "c"), said("assistant", "d")]
    assert merged(given) == [said("system", "a"), said("user", "b\n\nc"), said("assistant", "d")]
    assert given[2] == said("user", "b")


def test_results_and_calls_stay_apart() -> None:
    call = said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": {}}}])
    given = [said("assistant", "a"), call, call, said("assistant", "b"), said("tool", "1"), said("tool", "2")]
    assert merged(given) == given


def test_a_name_stays_where_all_have_it() -> None:
    ada, grace = said("user", "a", name="ada"), said("user", "b", name="grace")
    assert merged([ada, ada]) == [said("user", "a\n\na", name="ada")]
    assert merged([ada, grace]) == merged([ada, said("user", "b")]) == [said("user", "a\n\nb")]
    assert merged([said("user", "b"), ada]) == [said("user", "b\n\na")]
