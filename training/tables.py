"""A card's tables from `results.jsonl`: `python -m training.tables [results-small.jsonl]` prints them as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.paths import paths

RESULTS = Path(__file__).with_name("results.jsonl")
METHODS = ("full", "reuse")
_NAMES = {
    "one_hop": "one-hop",
    "two_hop": "two-hop",
    "earlier_chunk": "subject in an earlier chunk",
    "unanswerable": "unanswerable",
    "listing": "lists over chunks",
    "comparison": "comparisons of two things",
    "squad11_dev_8doc": "SQuAD 1.1 dev, 8 passages",
    "nq_open_10doc_random_distractors": "NQ-open, 10 passages",
    "hotpotqa_ircot_dev": "HotpotQA dev sample",
    "2wikimultihopqa_train_migres": "2WikiMultiHopQA sample",
}

Line = dict[str, Any]


def read(file: Path = RESULTS) -> list[Line]:
    """Every line of the results."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(lines: list[Line], sizes: list[int | str]) -> str:
    """One row per task, and for every number of chunks a column for full prefill and one for plain reuse: exact match,
    its 95 % interval, and F1, in percent."""
    cells = {(line["task"], line["chunks"], line["method"]): line for line in lines if line["chunks"] in sizes}
    columns = [(size, method) for size in sizes for method in METHODS]
    rows = ["| task | " + " | ".join(f"{size}, {method}" for size, method in columns) + " |"]
    rows.append("|---" * (len(columns) + 1) + "|")
    for task in dict.fromkeys(line["task"] for line in cells.values()):
        if all((task, *column) in cells for column in columns):
            found = [_cell(cells[task, *column]) for column in columns]
            rows.append(f"| {_NAMES.get(task, task)} | " + " | ".join(found) + " |")
    return "\n".join(rows)


def _cell(line: Line) -> str:
    em, low, high = (f"{100 * value:.0f}" for value in line["em"])
    return f"{em} [{low}, {high}] / {100 * line['f1'][0]:.0f}"


if __name__ == "__main__":
    found = read(*paths(__doc__))
    print(table(found, [4, 8, 16, 32]), table(found, [4, 8, "all"]), sep="\n\n")
