"""The card's numbers come from the project's own evaluation, and its tables from those alone."""

from __future__ import annotations

from pathlib import Path

from training.evaluate import lines
from training.tables import table


def test_a_line_for_each_method(tmp_path: Path) -> None:
    found = list(lines(None, ["one_hop,two_hop"], 2, 2, tmp_path / "records"))
    assert [(line["task"], line["method"]) for line in found] == [
        (task, method) for task in ("one_hop", "two_hop") for method in ("full", "reuse")
    ]
    for line in found:
        assert (line["chunks"], line["n"]) == (2, 2)
        assert line["em"][1] <= line["em"][0] <= line["em"][2] and line["em"][0] <= line["f1"][0]


def test_the_table_has_the_tasks_of_its_sizes() -> None:
    def line(task: str, size: int | str, method: str, em: float) -> dict[str, object]:
        return {"task": task, "chunks": size, "method": method, "em": [em, em - 0.1, em + 0.1], "f1": [em + 0.05] * 3}

    given = [line("one_hop", size, method, 0.5) for size in (4, 8) for method in ("full", "reuse")]
    given += [line("mine", size, method, 0.25) for size in (8, "all") for method in ("full", "reuse")]
    assert table(given, [4, 8]).splitlines() == [
        "| task | 4, full | 4, reuse | 8, full | 8, reuse |",
        "|---|---|---|---|---|",
        "| one-hop |" + " 50 [40, 60] / 55 |" * 4,
    ]
    assert table(given, [8, "all"]).splitlines()[2:] == ["| mine |" + " 25 [15, 35] / 30 |" * 4]
