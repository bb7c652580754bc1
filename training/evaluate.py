"""How well the reader reads, and what plain reuse takes from it: `python -m training.evaluate > training/results.jsonl`

Questions of the generated tasks on held-out worlds, of 4 to 32 chunks, and with `--real FOLDER` those of its question
sets, of 4 and 8 passages and of all; asked and marked by `samkv-rag eval`, which goes on where it was stopped. The
records lie in `build/reader/evaluation`, to be removed before another reader or changed code is measured. One JSON line
a task, number of chunks and method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from samkv_rag.cli.evaluate import Request, run
from samkv_rag.eval.results import read_results
from samkv_rag.eval.statistics import Estimate
from samkv_rag.eval.summary import rows_of

TASKS = "one_hop,two_hop,earlier_chunk,unanswerable,listing,comparison"
SIZES = (4, 8, 16, 32)
PASSAGES = (4, 8, None)
SEED = 1
RECORDS = Path("build/reader/evaluation")


def lines(model: str | None, data: list[str], chunks: int | None, count: int, out: Path) -> Iterator[dict[str, Any]]:
    """Answer `count` questions of each source with full prefill and with plain reuse, and report how well."""
    run(Request(model, data, "reuse", "1", count, chunks, None, SEED, None, "head", out))
    for task in read_results(out).tasks:
        for row in rows_of(task):
            line = {"task": task.task, "chunks": chunks or "all", "method": row.method, "n": len(task.ids)}
            yield line | {"em": _told(row.em), "f1": _told(row.f1)}


def _told(estimate: Estimate) -> list[float]:
    return [round(value, 3) for value in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a folder; by default the bundled reader")
    parser.add_argument("--n", type=int, default=300, help="questions of a task and number of chunks")
    parser.add_argument("--chunks", type=int, nargs="*", default=SIZES)
    parser.add_argument("--real", type=Path, help="a folder with question sets (*.jsonl)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [([TASKS], size, f"{size} chunks") for size in options.chunks]
    if options.real:
        sets = sorted(map(str, options.real.glob("*.jsonl")))
        wanted += [(sets, size, f"{size or 'all'} passages") for size in PASSAGES]
    for data, size, name in wanted:
        for line in lines(options.model, data, size, options.n, RECORDS / name):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
