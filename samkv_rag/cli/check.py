"""`samkv-rag check`: the parity gate for one model, in readable form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from samkv_rag.cli.console import notes, out, print_json
from samkv_rag.cli.engine import open_engine
from samkv_rag.reader import BUNDLED

ROUNDING = 0.01
"""Angles of far positions, multiplied in float32, come to as much."""


def run(model: str | None, as_json: bool) -> None:
    """Check `model`; a failed gate is an error with exit code 1."""
    name = model or BUNDLED
    with tempfile.TemporaryDirectory(prefix="samkv-check-") as folder, notes.status(f"Checking {escape(name)}"):
        engine = open_engine(name, Path(folder))
        try:
            report: Mapping[str, Any] = engine.self_check().as_dict()
        finally:
            engine.close()
    if as_json:
        print_json({**report, "model": name, "class": report["model"]})
        return
    out.print(_table(name, report))
    out.print(f"[green]Reuse is exact on {escape(name)}.[/green]")
    if report["place_error"] > max(report["tolerance"], ROUNDING):
        out.print(
            f"At its last positions, though, a text is not what it is at its first ones: logits are "
            f"{report['place_error']:.0%} off. Chunks are cached at the first ones; what is recomputed is exact."
        )


def _table(name: str, report: Mapping[str, object]) -> Table:
    table = Table(title=f"Self check of {escape(name)}", show_header=False)
    for key, value in report.items():
        for row, shown in _rows(key, value):
            table.add_row(row.replace("_", " "), escape(shown))
    return table


def _rows(key: str, value: object) -> list[tuple[str, str]]:
    """A nested mapping gets a row for each of its values."""
    if isinstance(value, Mapping):
        return [row for inner, v in value.items() for row in _rows(f"{key}: {inner}", v)]
    if isinstance(value, float):
        return [(key, f"{value:.3g}")]
    return [(key, str(value))]
