"""Benchmark results as CSV rows that say where they come from."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"
COMMIT = "SAMKV_COMMIT"
"""The variable that names the commit where the code runs without its repository."""


def where(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Date, commit, versions, the processor or GPU it ran on, threads: the columns every row shares."""
    gpu = torch.cuda.get_device_name(0) if torch.device(device).type == "cuda" else ""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get(COMMIT) or _commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in milliseconds."""
    return quantiles([value * 1e3 for value in seconds], "ms")


def quantiles(values: Sequence[float], unit: str) -> dict[str, float]:
    """Median, 20th and 80th percentile of `values`, with their `unit` in the names."""
    ordered = sorted(values)
    low, high = ordered[int(0.2 * (len(ordered) - 1))], ordered[round(0.8 * (len(ordered) - 1))]
    return {f"median_{unit}": statistics.median(ordered), f"p20_{unit}": low, f"p80_{unit}": high}


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], folder: Path | None = None) -> Path:
    """Append `rows` to `<name>.csv` in `folder`, by default `results`, with a header if the file is new; returns its
    path."""
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.csv"
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return file
