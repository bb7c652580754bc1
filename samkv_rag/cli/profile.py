"""`samkv-rag profile`: measure on which layers a model should choose blocks, and keep that beside its fingerprint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from samkv_rag.cli.console import notes, out, percent, print_json
from samkv_rag.cli.engine import open_engine, settings_of
from samkv_rag.eval.items import Item
from samkv_rag.eval.sources import Drawing, Source
from samkv_rag.profiling import LayerProfile, Tried, profile
from samkv_rag.reader import BUNDLED

DEFAULT_DATA = ("one_hop", "earlier_chunk", "two_hop")


@dataclass(frozen=True, slots=True)
class Request:
    """The command's options, as typed."""

    model: str | None
    data: list[str]
    store: Path
    limit: int
    chunks: int | None
    keep: float
    kv_dtype: str | None
    as_json: bool


def run(request: Request) -> None:
    """Measure, show, store."""
    sources = [Source.of(spec) for spec in request.data or DEFAULT_DATA]
    known = settings_of(request.store)
    model = request.model or (known.model if known else BUNDLED)
    stored_as = request.kv_dtype or (known.kv_dtype if known else "model")
    with closing(open_engine(model, request.store, stored_as)) as engine:
        engine.load()
        with _bar() as bar:
            task = bar.add_task(f"Profiling {escape(model)}", total=request.limit * len(sources))
            found = profile(engine, _items(sources, request), request.keep, lambda: bar.advance(task))
        engine.store.profiles.put(engine.model_fingerprint, found.as_profile())
    if request.as_json:
        print_json({"model": model, "layers": list(found.chosen), **found.as_profile().measured})
        return
    out.print(_table(found))
    out.print(f"[bold]Selection layers: {_named(found.chosen)}[/bold], for this model in {escape(str(request.store))}.")


def _items(sources: list[Source], request: Request) -> Iterator[Item]:
    for source in sources:
        yield from source.items(Drawing(request.limit, chunks=request.chunks))


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes)


def _table(found: LayerProfile) -> Table:
    title = (
        f"{found.questions} questions, {found.with_answers} with their answer in the passages; {found.keep:.0%} kept"
    )
    table = Table(title=title)
    for name in ("layers", "answers kept", "agreement with full attention"):
        table.add_column(name, justify="left" if name == "layers" else "right")
    for tried in found.tried:
        mark = "bold green" if tried.layers == found.chosen else None
        table.add_row(_named(tried.layers), *_shares(tried), style=mark)
    return table


def _shares(tried: Tried) -> tuple[str, str]:
    return "" if tried.answers is None else percent(tried.answers), percent(tried.agreement)


def _named(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
