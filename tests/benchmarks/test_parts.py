"""What the benchmarks count, against what was counted another way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import harness, plot
from benchmarks.ingestion import batches, random_chunks
from benchmarks.rows import quantiles, spread
from benchmarks.scores import Asked
from benchmarks.serving import MIB, Bench, measure
from benchmarks.shapes import random_prompt
from benchmarks.stages import Rates, clock
from benchmarks.systems import METHODS, first_token
from samkv_rag.ingest import BATCH_TOKENS
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.store import ChunkKVStore

# -- turns and quantiles -------------------------------------------------------------------------------------------


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []
    ways = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    assert harness.in_turns(ways, 2) == {"a": [3, 5], "b": [4, 6]}
    assert called == list("ababab")
    assert harness.in_turns({"a": lambda: 1}, 1, warm_ups=0) == {"a": [1]}


def test_quantiles_carry_their_unit() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert quantiles(values, "mib") == {"median_mib": 3.0, "p20_mib": 1.0, "p80_mib": 4.0}
    assert spread([value / 1e3 for value in values]) == pytest.approx({"median_ms": 3, "p20_ms": 1, "p80_ms": 4})


# -- passes and floors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", METHODS)
def test_the_floors_operations_are_the_reports(tiny: ModelAdapter, system: str) -> None:
    store = ChunkKVStore(":memory:")
    plan = random_prompt(tiny, store, 3, 48)
    clocked = clock(tiny, store, plan, METHODS[system], Rates(flops=1.0, read=math.inf))
    report = first_token(tiny, store, plan, METHODS[system])
    assert sum(clocked.floors.values()) == report.flops
    assert sum(clocked.spent.values()) + clocked.load + clocked.score <= clocked.total
    assert "recompute" not in vars(tiny), "the clock was taken off again"


def test_a_floor_is_what_takes_longer() -> None:
    rates = Rates(flops=10.0, read=2.0)
    assert rates.floor(100, 2) == 10 and rates.floor(10, 8) == 4


# -- the budget ----------------------------------------------------------------------------------------------------


def bench_of(adapter: ModelAdapter, budget: int, new: int = 4) -> Bench:
    store = ChunkKVStore(":memory:")
    return Bench(adapter, store, random_prompt(adapter, store, 4, 64), budget, new)


def test_an_answer_holds_the_buffers_of_its_keys_and_values(tiny: ModelAdapter) -> None:
    bench = bench_of(tiny, MIB)
    per_token = tiny.shape.bytes_per_token
    assert bench.begin(METHODS["full"], 0).held == (bench.plan.n_tokens + 4) * per_token
    kept = bench.begin(METHODS["samkv before"], 0)
    tokens = kept.decoding.ids.shape[1] - 1
    assert kept.held == (tokens + 4 + 1) * per_token and tokens < bench.plan.n_tokens / 3


def test_questions_differ_and_chunks_do_not(tiny: ModelAdapter) -> None:
    bench = bench_of(tiny, MIB)
    one, other = bench.question(0), bench.question(1)
    assert one.segments[:-1] == other.segments[:-1] == bench.plan.segments[:-1]
    assert one.question != other.question and one.question.token_ids == one.segments[-1].token_ids


def test_what_fits_counts_the_last_one_at_its_peak(tiny: ModelAdapter) -> None:
    bench = bench_of(tiny, 0)
    one = bench.begin(METHODS["samkv"], 0)
    for extra in range(3):
        budget = Bench(tiny, bench.store, bench.plan, max(one.held, one.peak) + extra * one.held, 4)
        assert budget.fitting(one, 99) == 1 + extra and budget.fitting(one, 1) == 1
    with pytest.raises(SystemExit, match="too small"):
        bench.fitting(one, 99)


def test_an_exceeded_budget_and_a_changed_answer_are_not_reported(tiny: ModelAdapter) -> None:
    bench, method = bench_of(tiny, 1000), METHODS["samkv before"]
    with pytest.raises(SystemExit, match="exceeded"):
        bench.serve(method, 1, [])
    with pytest.raises(SystemExit, match="differs"):
        bench_of(tiny, MIB).serve(method, 1, [-1])


def test_every_answer_has_its_new_tokens(tiny: ModelAdapter) -> None:
    seen = measure(bench_of(tiny, MIB), ["full", "samkv before"], rounds=1, most=3)
    assert {name: (found[0].answers, found[0].tokens) for name, found in seen.items()}["samkv before"] == (3, 12)


# -- batches and scores --------------------------------------------------------------------------------------------


def test_batches_are_those_of_ingestion(tiny: ModelAdapter) -> None:
    pending = random_chunks(tiny, 5, BATCH_TOKENS // 2)
    assert [len(batch) for batch in batches(pending)] == [2, 2, 1]
    assert [chunk for batch in batches(pending) for chunk in batch] == pending


def test_turned_queries_are_turned_keys_and_means_are_means(tiny: ModelAdapter) -> None:
    asked = Asked(tiny, chunks=3, size=32, asked=5)
    assert asked.check() < 1e-5
    blocks = asked.all_keys().unflatten(-1, (-1, 16)).mean(-1)
    torch.testing.assert_close(asked.summaries(), blocks, rtol=1e-4, atol=1e-4)


def test_keys_at_wrong_places_are_seen(tiny: ModelAdapter) -> None:
    asked = Asked(tiny, chunks=3, size=32, asked=5)
    asked.__dict__["own"] = asked.own.roll(1, 1)
    with pytest.raises(SystemExit, match="differ"):
        asked.check()


# -- the picture ---------------------------------------------------------------------------------------------------


def test_the_picture_leaves_out_systems_that_are_gone() -> None:
    timing = {"median_ms": "10", "p20_ms": "9", "p80_ms": "11", "full_over": "1", "kv_resident": "0.5"}
    rows = {("random", "4096", name): timing for name in ("full", "samkv joint", "samkv")}
    for draw, names in ((plot.draw_ttft, plot.NAMES), (plot.draw_resident, plot.SHOWN)):
        _, axes = plot.plt.subplots()
        draw(axes, rows, "4096")
        assert [label.get_text() for label in axes.get_xticklabels()] == [names["full"], names["samkv"]]
        plot.plt.close()


def test_rows_of_a_gpu_do_not_stand_for_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ttft.csv").write_text("model,median_ms,device\nrandom,9,x86_64 AVX2\nrandom,1,NVIDIA H100 80GB HBM3\n")
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    found = [plot.latest("ttft", "model", gpu=gpu)[("random",)]["median_ms"] for gpu in (False, True)]
    assert found == ["9", "1"]


def test_the_second_picture_is_drawn_from_the_rows_of_a_gpu(tmp_path: Path) -> None:
    plot.draw_gpu(tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 10_000
