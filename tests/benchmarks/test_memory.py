"""Measured memory: of tensors of known size, of an answer, and in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.memory import asked_in_a_child, rows
from benchmarks.probe import FILL, NOTHING, Gauge, Reading, ResidentSet, fill, read
from samkv_rag.errors import SamKVError
from tests.models import tiny_engine

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@pytest.fixture
def gauge() -> Gauge:
    return ResidentSet()


@linux
def test_what_came_and_went_is_in_the_peak_alone(gauge: Gauge) -> None:
    gauge.restart()
    before = gauge.now()
    passing = torch.ones(96 * MIB, dtype=torch.uint8)
    del passing
    staying = torch.ones(40 * MIB, dtype=torch.uint8)
    assert gauge.now() - before == pytest.approx(staying.nbytes, abs=4 * MIB)
    assert gauge.peak() - before == pytest.approx(96 * MIB, abs=4 * MIB)


@linux
def test_a_new_start_forgets_the_peak(gauge: Gauge) -> None:
    passing = torch.ones(96 * MIB, dtype=torch.uint8)
    del passing
    gauge.restart()
    assert gauge.peak() - gauge.now() < 8 * MIB


class Counter:
    """A gauge that records what it was asked, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def restart(self) -> None:
        self.asked.append("restart")

    def now(self) -> int:
        self.asked.append("now")
        return 10 * len(self.asked)

    def peak(self) -> int:
        return 1000


def test_the_question_alone_is_between_the_readings() -> None:
    engine, counter = tiny_engine(chat=True), Counter()
    fill(engine, 128)
    reading = read(engine, "samkv", 128, 4, counter)
    assert counter.asked == ["restart", "now", "now"]
    assert (reading.model, reading.peak, reading.held) == (20, 980, 10) and reading.digest
    assert read(engine, "full", 128, 4, Counter()).digest == reading.digest
    assert read(engine, NOTHING, 128, 4, Counter()).digest == ""


def test_chunks_that_are_not_stored_are_not_reported() -> None:
    with pytest.raises(SamKVError, match="not in the store"):
        read(tiny_engine(chat=True), "samkv", 128, 4, Counter())


def test_ratios_are_fulls_over_each_and_prompts_are_one() -> None:
    seen = {
        "full": [Reading(9 * MIB, 8 * MIB, 4 * MIB, "a"), Reading(9 * MIB, 10 * MIB, 4 * MIB, "a")],
        "samkv": [Reading(9 * MIB, 3 * MIB, MIB, "a")],
        NOTHING: [Reading(9 * MIB, 0, 0)],
    }
    full, samkv, nothing = rows(64, seen)
    assert full["peak_median_mib"] == 9 and full["peak_full_over"] == 1
    assert (samkv["peak_full_over"], samkv["held_full_over"], samkv["model_mib"]) == (3, 4, 9)
    assert nothing["peak_full_over"] == nothing["held_full_over"] == ""
    with pytest.raises(SystemExit, match="same prompt"):
        rows(64, seen | {"reuse": [Reading(0, MIB, MIB, "b")]})


def test_a_child_that_fails_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\necho red gate >&2\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(SystemExit, match="(?s)no memory is reported.*red gate"):
        asked_in_a_child(tmp_path, [], "full")
    child.write_text(f"#!/bin/sh\necho green\necho '{json.dumps({'model': 1, 'peak': 2, 'held': 3, 'digest': 'd'})}'\n")
    assert asked_in_a_child(tmp_path, [], "full") == Reading(1, 2, 3, "d")


@linux
@pytest.mark.slow
def test_an_answer_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = ["--tokens=256", "--new=8"]
    asked_in_a_child(tmp_path, options, FILL)
    nothing, full = (asked_in_a_child(tmp_path, options, system) for system in (NOTHING, "full"))
    cache = 2 * 12 * 4 * 64 * 4 * 256
    assert nothing.peak < 2 * MIB and nothing.held < 2 * MIB
    assert full.peak > full.held > cache and full.digest
