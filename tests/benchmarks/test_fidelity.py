"""What is left of full prefill's own answers: all of them where everything is kept, nothing without the passages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fidelity


def options(out: Path, limit: int, data: str = "one_hop") -> argparse.Namespace:
    methods = "samkv:keep=1,samkv:keep=0.3,no_context"
    return argparse.Namespace(
        model="bundled-small", data=data, methods=methods, keep="0.15", limit=limit, seed=3, out=out
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fidelity")
    fidelity.run(options(out, 2))
    return out


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / fidelity.ANSWERS).read_text().splitlines()]


def test_what_keeps_everything_loses_nothing_and_what_sees_nothing_loses_most(folder: Path) -> None:
    for row in rows(folder):
        whole, some, none = row["by"].values()
        assert whole["same"] and whole["loss"] == pytest.approx(0, abs=1e-3) and whole["kept"] == 1
        assert 0.2 < some["kept"] <= 0.3
        assert some["loss"] < none["loss"] and none["kept"] == 0


def test_it_goes_on_where_it_was_stopped_and_leaves_out_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    before = rows(folder)
    fidelity.run(options(folder, 3))
    assert rows(folder)[:2] == before and len(rows(folder)) == 3
    data = tmp_path / "long.jsonl"
    long = {"id": "1", "question": "Who?", "answers": ["Ana"], "passages": [{"text": "Ana and her ships. " * 2000}]}
    data.write_text(json.dumps(long))
    fidelity.run(options(tmp_path / "out", 3, str(data)))
    assert rows(tmp_path / "out") == []


def test_there_is_a_csv_row_for_every_method_of_every_source(folder: Path) -> None:
    asked = [row | {"source": source} for source in ("one", "other") for row in rows(folder)]
    found = fidelity.summary(asked)
    labels = ["samkv:keep=1", "samkv:keep=0.3", "no_context"]
    assert [(row["source"], row["method"]) for row in found] == [(s, m) for s in ("one", "other") for m in labels]
    assert found[0]["same"] == found[0]["same_low"] == 1 and found[0]["model"] == "bundled-small"
    assert found[2]["loss_low"] <= found[2]["loss"] <= found[2]["loss_high"] <= 10
