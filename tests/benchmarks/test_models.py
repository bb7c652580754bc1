"""The page of model types says what was tried, and a try finds what is true."""

from __future__ import annotations

import pytest

from benchmarks.models import PAGE, Tried, kinds, page, tried


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("llama", "served", ""),
        ("gpt_oss", "served", ""),
        ("qwen2_5_vl", "served", ""),
        ("doge", "refused", "a mask of its own making"),
        ("gpt2", "refused", "no rotary embedding"),
        ("gemma4_text", "served", ""),
    ],
)
def test_a_type_is_tried(kind: str, outcome: str, reason: str) -> None:
    found = tried(kind)
    assert found is not None and (found.kind, found.outcome) == (kind, outcome)
    assert reason in found.reason


def test_what_cannot_be_built_small_is_not_tried() -> None:
    assert tried("reformer") is None


def test_the_page_lists_every_type_once() -> None:
    text = page([Tried("a", "served"), Tried("b", "refused", "it is b"), Tried("c", "wrong", "by 1")], ["d"])
    assert "**Served** (1): a." in text and "| b | it is b |" in text and "| c | by 1 |" in text and ": d." in text


def test_the_page_that_is_here_names_all_types_and_nothing_that_is_served_wrongly() -> None:
    text = PAGE.read_text()
    assert "**Wrong**" not in text
    listed = {word.strip(",.") for word in text.replace("|", " ").split()}
    assert set(kinds()) <= listed
