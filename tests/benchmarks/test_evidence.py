"""The records behind docs/results.md are those that the command asks for, and no others."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence import PACKED, RUNS, wanted
from samkv_rag.eval.settings import settings

ON_RECORD = {folder.name: json.loads((folder / "run.json").read_text()) for folder in PACKED.iterdir()}


@pytest.mark.parametrize("name", RUNS)
def test_what_is_on_record_was_asked_for_like_this(name: str) -> None:
    asked, told = RUNS[name], ON_RECORD[name]["arguments"]
    assert told["data"] == [[task, ""] for task in asked.data.split(",")]
    assert told["settings"] == [one.label for one in settings(asked.methods, [float(k) for k in asked.keep.split(",")])]
    for field in ("limit", "chunks", "chunk_tokens", "seed", "sink_prefix"):
        assert told[field] == getattr(asked, field)


def test_every_record_has_its_command() -> None:
    assert {name for name, told in ON_RECORD.items() if told["arguments"]["data"][0][1] == ""} == set(RUNS)


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(SystemExit, match="earlier"):
        wanted(["earlier12"], None)
