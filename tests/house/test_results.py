"""What docs/results.md reports was measured with the readers that the package ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from samkv_rag.model.loading import ModelSource
from samkv_rag.prompt.sinks import sink_of
from samkv_rag.reader import is_bundled

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "benchmarks" / "results" / "eval").glob("*/run.json"))


def test_there_are_results() -> None:
    assert RUNS and all(f"## {run.parent.name}\n" in (ROOT / "docs" / "results.md").read_text() for run in RUNS)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.parent.name)
def test_they_are_the_shipped_readers(run: Path) -> None:
    found = json.loads(run.read_text())
    assert is_bundled(found["model"]["name"])
    source = ModelSource(found["model"]["name"], sink=sink_of(found["arguments"]["sink_prefix"]))
    same = found["model"]["fingerprint"] == source.fingerprint
    if not same and {one["transformers"] for one in found["environments"]} != {transformers.__version__}:
        pytest.skip("fingerprints hold a configuration as transformers writes it, which versions may do differently")
    assert same
