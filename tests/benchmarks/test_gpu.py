"""The one call for a GPU runs without one, too, recorded passes included: device time is not for finding typos."""

from __future__ import annotations

import csv
import sys
from functools import cached_property
from pathlib import Path

import pytest

from benchmarks import bench, gpu
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.recorded import Passes
from tests.model.recording import passes_of

SIZES = ("--device", "cpu", "--model", "tiny", "--tokens", "64", "128", "--seconds", "300", "--new", "8")


@pytest.fixture
def folder(tiny: ModelAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "model_named", lambda label, device: tiny)
    monkeypatch.setattr("sys.argv", ["gpu", *SIZES, "--out", str(tmp_path), "--budget", "0.001", "--threads", "1"])
    return tmp_path


def systems(folder: Path, name: str) -> set[str]:
    with (folder / f"{name}.csv").open() as file:
        return {row["method"] for row in csv.DictReader(file)}


def test_every_part_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0, capsys.readouterr().out
    names = {file.stem for file in folder.glob("*.csv")}
    assert names == {"ttft", "stages", "memory", "decode", "tiers", "serving"}, "kernels need a GPU"
    assert systems(folder, "ttft") == {"stock", *gpu.SYSTEMS}
    assert "left out" not in capsys.readouterr().out


def test_recorded_passes_are_timed_beside_plain_ones(
    folder: Path, tiny: ModelAdapter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = list[Passes]()

    def recordings(self: bench.Bench) -> tuple[Passes, None]:
        made.append(passes_of(self.adapter))
        return made[0], None

    recorded = cached_property(recordings)
    recorded.__set_name__(bench.Bench, "recordings")
    monkeypatch.setattr(bench.Bench, "recordings", recorded)
    monkeypatch.setattr("sys.argv", [*sys.argv, "--parts", "ttft", "profile"])
    assert gpu.main() == 0, capsys.readouterr().out
    assert systems(folder, "ttft") == {"stock", *gpu.SYSTEMS, *(f"{name}, recorded" for name in gpu.SYSTEMS[1:])}
    assert (folder / "profile-samkv-recorded.txt").exists()
    assert len(made) == 1 and made[0].recordings > 0 and made[0].reason is None
    assert tiny.passes is None, "what is shared is as it was"
