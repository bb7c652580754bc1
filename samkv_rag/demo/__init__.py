"""The bundled handbook: a small invented world in Markdown, and ten questions about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HANDBOOK = Path(__file__).parent / "handbook"
"""The folder with the Markdown files."""


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """A question, its short answer, and where the answer stands.

    `kind` says what makes it hard: nothing (one_hop), two facts in different chunks (two_hop), or a subject that
    is named only in the chunk before (earlier_chunk). `support` are pieces of text, one for each chunk that is
    needed; the last one holds the answer.
    """

    question: str
    expected: str
    kind: Literal["one_hop", "two_hop", "earlier_chunk"]
    support: tuple[str, ...]


def questions() -> list[DemoQuestion]:
    """The ten questions in the order in which the demo asks them."""
    raw = json.loads((Path(__file__).parent / "questions.json").read_text(encoding="utf-8"))
    return [DemoQuestion(q["question"], q["expected"], q["kind"], tuple(q["support"])) for q in raw]
