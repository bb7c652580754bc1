"""What is left of full prefill's own answers: all of them where everything is kept, nothing without the passages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import fidelity
from samkv_rag import SamKVError
from samkv_rag.eval.records import RECORDS, read_records

SETTINGS = ["samkv:keep=1", "samkv:rest=drop,keep=0.3", "no_context"]
METHODS = ",".join(SETTINGS)


def options(
    out: Path, limit: int, data: str = "one_hop", methods: str = METHODS, kv_dtype: str = "model"
) -> argparse.Namespace:
    return argparse.Namespace(
        model="bundled-small", data=data, methods=methods, keep=0.15, limit=limit, seed=3, out=out, answer_tokens=6,
        kv_dtype=kv_dtype,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fidelity")
    fidelity.run(options(out, 2))
    return out


def test_what_keeps_everything_loses_nothing_and_what_sees_nothing_loses_most(folder: Path) -> None:
    records = read_records(folder / RECORDS)[:6]
    assert [record["setting"] for record in records] == SETTINGS * 2
    for whole, some, none in (records[:3], records[3:]):
        assert whole["same"] and whole["loss"] == pytest.approx(0, abs=1e-3) and whole["kept"] == 1
        assert 0.2 < some["kept"] <= 0.3
        assert some["loss"] < none["loss"] and none["kept"] == 0


def test_a_method_gives_its_own_answer_where_it_would_have_given_another(folder: Path) -> None:
    for record in read_records(folder / RECORDS)[:6]:
        assert (record["answer"] == record["full"]) == record["same"]
        assert record["tells"] == record["told"] or not record["same"]


def test_it_goes_on_where_it_was_stopped_but_with_nothing_else(folder: Path) -> None:
    before = read_records(folder / RECORDS)
    fidelity.run(options(folder, 3))
    now = read_records(folder / RECORDS)
    assert now[: len(before)] == before and len(now) == 9
    with pytest.raises(SamKVError, match="holds an evaluation with other settings"):
        fidelity.run(options(folder, 3, methods="reuse"))


def test_what_is_stored_otherwise_is_a_row_of_its_own(tmp_path: Path) -> None:
    fidelity.run(options(tmp_path, 1, methods="samkv:keep=1,samkv:keep=1,recompute=0.2,reuse", kv_dtype="int4"))
    whole, some, none = fidelity.summary(tmp_path)
    assert [row["method"].split(" in ")[1] for row in (whole, some, none)] == ["int4"] * 3
    assert whole["loss"] == pytest.approx(0, abs=1e-3), "what is computed anew is exact"


def test_what_does_not_fit_is_counted_and_not_answered(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "question": "Who?", "answers": ["Ana"], "passages": [{"text": text}]}
        for text in ("Ana and her ships. " * 2000, "Ana has ships.")
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fidelity.run(options(tmp_path / "out", 3, str(tmp_path / "long.jsonl"), "reuse"))
    (row,) = fidelity.summary(tmp_path / "out")
    assert (row["questions"], row["skipped"], row["method"]) == (1, 1, "reuse")


def test_there_is_a_csv_row_for_every_method_and_it_says_where_it_was_measured(folder: Path) -> None:
    found = fidelity.summary(folder)
    assert [row["method"] for row in found] == SETTINGS
    assert found[0]["same"] == found[0]["same_low"] == 1 and found[0]["model"] == "bundled-small"
    assert found[2]["loss_low"] <= found[2]["loss"] <= found[2]["loss_high"] <= 10
    assert found[0]["most_tokens"] == 6 >= found[0]["answer_tokens"] > 1
    assert found[0]["torch"] == torch.__version__ and found[0]["source"] == "one_hop"


@pytest.mark.parametrize(
    ("text", "golds", "told"),
    [
        ("It was Ana Petrov.", ["Omar", "Ana Petrov"], True),
        ("not in the passages", ["no"], False),
        ("anything", ["The"], False),
    ],
)
def test_a_gold_answer_is_told_in_whole_words(text: str, golds: list[str], told: bool) -> None:
    assert fidelity.tells(text, golds) == told
