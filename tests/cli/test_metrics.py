"""How answers are marked."""

from __future__ import annotations

import pytest

from samkv_rag.eval.metrics import exact_match, normalise, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Kestrel  Bridge.", "kestrel bridge"),
        ("a an the", ""),
        ("Anna's", "annas"),
        ("", ""),
    ],
)
def test_normalising(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert exact_match(" cast iron.", "Cast Iron") and not exact_match("iron", "cast iron")


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("cast iron", "the cast iron", 1.0),
        ("iron", "cast iron", 2 / 3),
        ("oak", "cast iron", 0.0),
        ("", "", 1.0),
        ("", "oak", 0.0),
        ("oak oak", "oak", 2 / 3),
    ],
)
def test_token_f1(answer: str, expected: str, score: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(score)
