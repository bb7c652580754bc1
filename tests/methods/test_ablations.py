"""The ablation tables: every line is a setting, no two are the same, and together they touch every field of SamKV."""

from __future__ import annotations

from dataclasses import fields

from benchmarks.ablations import OURS, PAPER
from samkv_rag import SamKV
from samkv_rag.eval.settings import parse, split


def test_every_line_is_a_setting_of_its_own() -> None:
    for table in (PAPER, OURS):
        assert split(",".join(table.values())) == list(table.values())
        assert len({parse(line)[0] for line in table.values()}) == len(table)


def test_the_papers_table_is_its_recipe_with_three_switches() -> None:
    made = [parse(line)[0] for line in PAPER.values()]
    assert made[0] == SamKV.paper() and len(made) == 8
    assert {(m.middle, m.bias, m.recompute) for m in made if isinstance(m, SamKV)} == {
        (middle, bias, again) for middle in (True, False) for bias in (True, False) for again in (1.0, 0.0)
    }


def test_ours_vary_every_field_but_what_is_measured_apart() -> None:
    """`keep` and `hold` have evaluations of their own ("sweep", "late"); the others are in `benchmarks.fidelity`."""
    varied = {name for line in [*OURS.values(), *PAPER.values()] for name in parse(line)[1]}
    apart = {"keep", "hold", "vicinity", "answer_weight", "settle_at", "early"}
    assert {field.name for field in fields(SamKV)} - varied == apart
    assert SamKV() in [parse(line)[0] for line in OURS.values()]
