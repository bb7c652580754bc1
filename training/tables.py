"""The card's tables from `results.jsonl`: `python -m training.tables` prints them as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
_NAMES = {
    "one_hop": "one-hop",
    "two_hop": "two-hop",
    "earlier_chunk": "subject in an earlier chunk",
    "unanswerable": "unanswerable",
}


def read(file: Path = RESULTS) -> list[dict[str, Any]]:
    """Every line of the results."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def generated(lines: list[dict[str, Any]]) -> str:
    """Exact match in percent by task; for every number of chunks a column of full prefill and one of plain reuse."""
    sizes = sorted({line["chunks"] for line in lines if "chunks" in line})
    cells = {(line["task"], line["chunks"], line["method"]): line for line in lines if "chunks" in line}
    head = [f"{size}{', ' + method}" for size in sizes for method in ("full", "reuse")]
    rows = ["| task | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for task, name in _NAMES.items():
        found = [cells[task, size, method] for size in sizes for method in ("full", "reuse")]
        rows.append(f"| {name} | " + " | ".join(map(_percent, found)) + " |")
    return "\n".join(rows)


def _percent(line: dict[str, Any]) -> str:
    return f"{100 * line['exact']:.0f} ± {100 * line['interval']:.0f}"


if __name__ == "__main__":
    print(generated(read()))
