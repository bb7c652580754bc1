"""`samkv-rag store`: show what is there, check whether it is sound, and make room."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from samkv_rag.cli.console import human_bytes, notes, out, percent, print_json, progress_bar
from samkv_rag.errors import SamKVError

if TYPE_CHECKING:
    from samkv_rag import ChunkKVStore

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)


def _open(folder: Path) -> ChunkKVStore:
    """The store in `folder`; inspecting a store never creates one."""
    from samkv_rag import ChunkKVStore
    from samkv_rag.store import identity

    if not (folder / identity.NAME).is_file():
        raise SamKVError(f"There is no store in {folder}: run samkv-rag ingest FOLDER first, or give --store.")
    return ChunkKVStore(str(folder))


def stats(folder: Path, as_json: bool) -> None:
    """Print entries, bytes and hit rate."""
    store = _open(folder)
    try:
        found = store.stats()
    finally:
        store.close()
    if as_json:
        print_json(found.as_dict())
        return
    looked_up = found.hits + found.misses
    rate = f"{percent(found.hit_rate)} of {looked_up:,} look-ups" if looked_up else "no look-ups yet"
    table = Table(title=f"Store {escape(str(folder))}", show_header=False)
    table.add_row("entries", f"{found.entries:,}")
    table.add_row("size", human_bytes(found.bytes))
    table.add_row("stored as", ", ".join(f"{count:,} {name}" for name, count in found.kv_dtypes.items()) or "nothing")
    table.add_row("limit", "none" if found.max_bytes is None else human_bytes(found.max_bytes))
    table.add_row("hit rate", rate)
    table.add_row("evicted", f"{found.evictions:,}")
    table.add_row("damaged", f"{found.damaged:,}")
    out.print(table)


def verify(folder: Path, as_json: bool) -> None:
    """Check all checksums; damaged entries give exit code 1."""
    store = _open(folder)
    try:
        with progress_bar() as bar:
            task = bar.add_task("Checking", total=None)
            damaged = store.verify(progress=lambda done, total: bar.update(task, completed=done, total=total))
    finally:
        store.close()
    if as_json:
        print_json({"damaged": damaged})
    elif damaged:
        out.print(f"{len(damaged)} damaged entries; samkv-rag store prune removes them, ingest computes them again:")
        out.print("\n".join(damaged))
    else:
        out.print("All entries are sound.")
    if damaged:
        raise typer.Exit(1)


def prune(folder: Path, as_json: bool, max_bytes: str | None) -> None:
    """Remove what is damaged, left over, or too much."""
    limit = None if max_bytes is None else parse_size(max_bytes)
    store = _open(folder)
    try:
        report = store.prune(max_bytes=limit)
    finally:
        store.close()
    if as_json:
        print_json(report.as_dict())
        return
    out.print(
        f"Removed {report.damaged} damaged, {report.evicted} unused entries and {report.orphans} leftover files; "
        f"{human_bytes(report.bytes_freed)} freed."
    )
    if report.evicted:
        notes.print("What was removed is computed again when a question or an ingestion needs it.")


def parse_size(text: str) -> int:
    """Bytes of "500MB", "20 GiB" or a plain number; units are powers of 1024."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 20GiB.")
    return int(float(found[1]) * _UNITS[found[2].upper()])
