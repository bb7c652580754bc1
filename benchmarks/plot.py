"""Draw docs/result.png from the committed CSV rows. `python -m benchmarks.plot`"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)

from benchmarks.rows import RESULTS  # noqa: E402

PICTURE = Path(__file__).parent.parent / "docs" / "result.png"
COLOURS = {"full": "#8d99ae", "reuse": "#e0a458", "samkv": "#2a6f97", "samkv 1/3": "#61a5c2", "samkv 1/10": "#a9d6e5"}
Row = Mapping[str, str]


def latest(name: str, *keys: str) -> dict[tuple[str, ...], Row]:
    """The last row of `results/<name>.csv` for every combination of `keys`."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}


def draw_ttft(axes: Any, rows: Mapping[tuple[str, ...], Row], tokens: str) -> None:
    """Bars of the median time to the first token, with the 20 to 80 % range and the ratio to full prefill."""
    found = [(method, rows["random", tokens, method]) for method in COLOURS if ("random", tokens, method) in rows]
    for place, (method, row) in enumerate(found):
        median, low, high = (float(row[key]) / 1e3 for key in ("median_ms", "p20_ms", "p80_ms"))
        spread = [[median - low], [high - median]]
        axes.bar(place, median, 0.7, yerr=spread, capsize=3, color=COLOURS[method], ecolor="#444444")
        axes.annotate(f"{float(row['full_over']):.1f}x", (place, high), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(found)), [name.replace(" ", "\n") for name, _ in found])
    axes.set_ylabel("seconds to the first token")
    axes.set_title(f"12 x 768 Llama, {tokens} prompt tokens, one CPU thread", fontsize=10)


def draw_accuracy(axes: Any, rows: Mapping[tuple[str, ...], Row], chunks: str, methods: Sequence[str]) -> None:
    """Exact match per task with 95 % intervals, methods side by side."""
    tasks = [task for task in ("one_hop", "earlier_chunk", "two_hop") if (task, chunks, "full") in rows]
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        cells = [rows[task, chunks, method] for task in tasks]
        heights = [float(cell["em"]) for cell in cells]
        spread = [[h - float(c["em_low"]) for h, c in zip(heights, cells, strict=True)],
                  [float(c["em_high"]) - h for h, c in zip(heights, cells, strict=True)]]  # fmt: skip
        places = [place + (number - (len(methods) - 1) / 2) * width for place in range(len(tasks))]
        label = f"{method}, {float(cells[0]['kept']):.0%} kept"
        axes.bar(places, heights, width, yerr=spread, capsize=2, color=COLOURS[method], ecolor="#444444", label=label)
    axes.set_xticks(range(len(tasks)), [task.replace("_", "-") for task in tasks])
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    count = rows[tasks[0], chunks, "full"]["n"]
    axes.set_title(f"Bundled reader, {chunks} chunks, names never seen, n = {count}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower left")


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), dpi=130)
    draw_ttft(left, latest("ttft", "model", "tokens", "method"), "4096")
    draw_accuracy(right, latest("accuracy", "task", "chunks", "method"), "16", ["full", "reuse", "samkv"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)
    print(f"drawn: {PICTURE.name}")


if __name__ == "__main__":
    main()
