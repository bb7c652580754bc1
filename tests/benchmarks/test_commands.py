"""Every benchmark from its options to its rows, on a tiny model; none prints a word when reuse is not exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.shapes import CPU_LLAMA, LLAMA_8B
from benchmarks.systems import METHODS
from benchmarks.tiers import SYSTEMS
from samkv_rag.errors import ParityError
from samkv_rag.model.adapter import ModelAdapter

Row = dict[str, str]
Command = Callable[..., list[Row]]

ARGUMENTS = {
    "decode": ("--tokens", "64", "--new", "2", "--answers", "2", "--rounds", "1"),
    "ttft": ("--models", "random", "--tokens", "256", "--rounds", "2"),
    "ingestion": ("--chunks", "3", "--chunk-tokens", "40", "--rounds", "2"),
    "serving": ("--tokens", "256", "--budget", "1", "--new", "4", "--rounds", "2"),
    "stages": ("--tokens", "256", "--rounds", "2"),
    "tiers": ("--tokens", "256", "--rounds", "1"),
}
SHARED = {"date", "commit", "torch", "transformers", "python", "device", "threads", "rounds"}


def by(rows: list[Row], *names: str) -> dict[tuple[str, ...], Row]:
    return {tuple(row[name] for name in names): row for row in rows}


@pytest.mark.parametrize("name", [*ARGUMENTS, "integrations"])
def test_no_number_is_told_when_reuse_is_not_exact(
    name: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assemble = ModelAdapter.assemble

    def shifted(self, parts, positions, *rest):  # type: ignore[no-untyped-def]
        turned = assemble(self, parts, positions + 7, *rest)
        turned.positions = turned.positions - 7  # the queries stay where they were; only the keys have moved
        return turned

    monkeypatch.setattr(ModelAdapter, "assemble", shifted)
    with pytest.raises(ParityError):
        command(name, *ARGUMENTS.get(name, ()))
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_dry_run_writes_nothing(name: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name, *ARGUMENTS[name], "--dry") == []
    said = capsys.readouterr().out
    assert "exactness gate green" in said and "model=random" in said and "written to" not in said


def test_ttft_has_every_system_and_says_full_over_it(command: Command) -> None:
    rows = by(command("ttft", *ARGUMENTS["ttft"]), "method")
    assert set(rows) == {(name,) for name in ("stock", *METHODS)}
    for row in rows.values():
        assert set(row) >= SHARED
        times = float(rows["full",]["median_ms"]), float(row["median_ms"])
        assert float(row["full_over"]) == pytest.approx(times[0] / times[1], rel=1e-3, abs=1e-3)
    assert float(rows["samkv before",]["kept"]) <= 0.15 and float(rows["cacheblend",]["kept"]) == 1


def test_ingestion_counts_tokens_and_files(command: Command) -> None:
    rows = by(command("ingestion", *ARGUMENTS["ingestion"]), "way")
    assert set(rows) == {
        (way,)
        for way in ("forward", "caches", "memory", "disk model", "disk bf16", "disk int8", "disk fp8", "disk int4")
    }
    for row in rows.values():
        rate = 120e3 / float(row["median_ms"])
        assert float(row["tokens_per_second"]) == pytest.approx(rate, rel=1e-3)
    written = {way: float(row["written_mib"]) for (way,), row in rows.items()}
    assert written["memory"] == written["forward"] == 0
    assert written["disk model"] > written["disk bf16"] > written["disk int8"] > 0


def test_serving_holds_more_answers_where_less_is_kept(command: Command) -> None:
    rows = by(command("serving", *ARGUMENTS["serving"]), "method")
    answers = {name: int(row["answers"]) for (name,), row in rows.items()}
    assert answers["samkv before"] > answers["full"] >= 1
    assert all(float(row["held_mib"]) <= 1 for row in rows.values())
    assert float(rows["full",]["decode_full_over"]) == float(rows["full",]["full_over"]) == 1


def test_stages_say_what_is_above_the_floor(command: Command) -> None:
    rows = by(command("stages", *ARGUMENTS["stages"]), "method")
    assert set(rows) == {(name,) for name in METHODS}
    full = rows["full",]
    assert float(full["look_ms"]) == float(full["recompute_ms"]) == float(full["load_ms"]) == 0
    assert float(full["first_token_floor_ms"]) > 0
    assert all((float(row["recompute_floor_ms"]) > 0) == (row is not full) for row in rows.values())


def test_tiers_read_less_where_less_is_looked_at(command: Command) -> None:
    rows = by(command("tiers", *ARGUMENTS["tiers"]), "tier", "kv_dtype", "method")
    disks = [(tier, form) for tier in ("warm", "cold") for form in ("model", "int8", "int4")]
    places = [("memory", "model"), *disks]
    assert set(rows) == {("none", "model", "full"), *((*place, name) for place in places for name in SYSTEMS)}
    read = {case: float(row["kv_read_mib"]) for case, row in rows.items()}
    for place in places:
        assert read[*place, "samkv mean"] == 0 < read[*place, "samkv mean 1/3"] < read[*place, "reuse"]
    four, eight, whole = (read["cold", form, "reuse"] for form in ("int4", "int8", "model"))
    assert four < eight < whole == read["memory", "model", "reuse"]


def test_scores_are_compared_with_turning_all_keys(command: Command) -> None:
    rows = by(command("scores", "--tokens", "256", "--rounds", "2"), "way")
    assert set(rows) == {("summaries",), ("all keys",), ("keys turned",)}
    assert float(rows["keys turned",]["keys_turned_over"]) == 1
    assert all(float(row["error"]) < 1e-4 and int(row["chunk_tokens"]) == 32 for row in rows.values())


def test_the_shape_for_a_gpu_is_that_of_an_8b_llama() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LLAMA_8B)
    assert sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2) == pytest.approx(6.98e9, rel=1e-3)
    assert CPU_LLAMA.num_hidden_layers == 12 and CPU_LLAMA.hidden_size == 768
