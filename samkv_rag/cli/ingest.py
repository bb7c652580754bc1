"""`samkv-rag ingest`: what is about to be computed, a bar while it is, and the outcome."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer
from rich.markup import escape
from rich.progress import Progress

from samkv_rag.cli.console import counted, human_bytes, human_seconds, notes, progress_bar
from samkv_rag.cli.engine import chunk_tokens, index_root, model_name, open_engine, settings_of
from samkv_rag.cli.errors import USER_ERROR, going_on
from samkv_rag.reader import BUNDLED
from samkv_rag.retrieval import IngestPlan, IngestReport, ingest_folder
from samkv_rag.retrieval.embedding import OFFLINE
from samkv_rag.retrieval.folder import Engine
from samkv_rag.retrieval.loading import find_files


def run(
    path: Path, store: Path, model: str | None, embed: str | None, chunk_size: int | None, kv_dtype: str | None
) -> None:
    """Ingest `path` with the settings of the store's index, except for those given, and report what happened."""
    find_files(path)  # a wrong path is reported before a store is made
    known = settings_of(store)
    model = model_name(model) if model else known.model if known else BUNDLED
    same_model = known is not None and known.model == model
    size = chunk_size or (known.chunk_size if known and same_model else chunk_tokens(model))
    stored_as = kv_dtype or (known.kv_dtype if known else "model")
    engine = open_engine(model, store, stored_as)
    try:
        engine.store.require_writable()
        with going_on():
            report = ingest(engine, path, store, model, size, embed or (known.embed if known else OFFLINE), stored_as)
    finally:
        engine.close()
    tell(report)
    if not (report.added or report.changed or report.unchanged or report.removed):
        raise typer.Exit(USER_ERROR)


def ingest(
    engine: Engine, path: Path, store: Path, model: str, chunk_size: int, embed: str, kv_dtype: str = "model"
) -> IngestReport:
    """Ingest with the estimate and the bar on stderr."""
    with progress_bar() as bar:
        view = _View(bar, store, kv_dtype)
        return ingest_folder(
            engine,
            path,
            index_root(store),
            model=model,
            chunk_size=chunk_size,
            embed=embed,
            kv_dtype=kv_dtype,
            on_plan=view.plan,
            on_progress=view.advance,
            on_wait=view.wait,
        )


class _View:
    """The progress bar, started when the amount of work is known."""

    def __init__(self, bar: Progress, store: Path, kv_dtype: str) -> None:
        self.bar, self.store, self.kv_dtype, self.tokens = bar, store, kv_dtype, 0
        self.task = bar.add_task("Ingesting", total=None, visible=False, tokens=0)

    def plan(self, plan: IngestPlan) -> None:
        """Say what will be computed and how much room it takes."""
        free = shutil.disk_usage(_existing(self.store)).free
        stored_as = "" if self.kv_dtype == "model" else f" in {self.kv_dtype}"
        self.bar.console.print(
            f"{counted(plan.files, 'file')}, {counted(plan.chunks, 'chunk')}, {plan.tokens:,} tokens: about "
            f"{human_bytes(plan.kv_bytes)} of caches{stored_as}; {human_bytes(free)} free in {escape(str(self.store))}"
        )
        if plan.kv_bytes > free:
            self.bar.console.print("[yellow]That is more than is free; use --store on a larger disk.[/yellow]")
        self.bar.reset(self.task, total=plan.chunks, visible=True)

    def advance(self, chunks: int, tokens: int) -> None:
        self.tokens += tokens
        self.bar.update(self.task, advance=chunks, tokens=self.tokens)

    def wait(self) -> None:
        self.bar.console.print("Another ingestion into this store is running; waiting for it.")


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def tell(report: IngestReport) -> None:
    """The outcome, unreadable files last."""
    counts = [
        (report.added, "new"),
        (report.changed, "changed"),
        (report.unchanged, "unchanged"),
        (report.removed, "removed"),
        (report.failed, "unreadable"),
    ]
    files = ", ".join(f"{len(group)} {word}" for group, word in counts if group) or "no readable files"
    notes.print(
        f"{files}; {counted(report.total_chunks, 'chunk')} indexed; {report.tokens:,} tokens computed in "
        f"{human_seconds(report.seconds)}"
    )
    if report.failed:
        notes.print("[yellow]Not ingested:[/yellow]")
    for path, reason in sorted(report.failed.items()):
        notes.print(f"  {escape(path)}: {escape(reason)}", soft_wrap=True)
