"""`samkv-rag profile`: measure on which layers a model should choose tokens, and keep that under its fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from samkv_rag.cli.console import counted, notes, out, percent, print_json
from samkv_rag.cli.engine import open_engine, settings_of
from samkv_rag.eval.items import Item
from samkv_rag.eval.sources import Drawing, Source, sources_of
from samkv_rag.profiling import FEWEST, LayerProfile, Outcome, profile
from samkv_rag.reader import BUNDLED

DEFAULT_DATA = ("one_hop", "earlier_chunk", "two_hop", "listing")
SAME = "same answer as full prefill"
LOSS = "loss in nats"


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
    drawing = Drawing(request.limit, chunks=request.chunks, marked=False)
    sources = sources_of(request.data or DEFAULT_DATA)
    for source in sources:
        source.check(drawing)
    known = settings_of(request.store)
    model = request.model or (known.model if known else BUNDLED)
    stored_as = request.kv_dtype or (known.kv_dtype if known else "model")
    with closing(open_engine(model, request.store, stored_as)) as engine:
        engine.store.require_writable()
        engine.load()
        with _bar() as bar:
            found = profile(engine, _items(sources, drawing), request.keep, _shown_in(bar))
        kept = found.as_profile()
        if found.told:
            engine.store.profiles.put(engine.model_fingerprint, kept)
    if not found.told:
        notes.print(f"Nothing is stored: {_untold(found)}. Give others with --data, or more with --limit.")
    if request.as_json:
        print_json({"model": model, "stored": found.told, **kept.chosen, **kept.measured})
        return
    for table in TABLES:
        out.print(table(found))
    if not found.told:
        return
    wide = f"everything is attended to on {_share(found.wide)} of the layers, {_share(found.sees)} of the rest above"
    out.print(
        f"[bold]Selection layers: {_named(found.chosen)}; {wide}; "
        f"early {found.early:g}; where the rest is dropped, answer_weight {found.answer_weight:g}; "
        f"vicinity {found.vicinity:g}[/bold], for this model in {escape(str(request.store))}."
    )


def _untold(found: LayerProfile) -> str:
    asked = counted(found.questions, "question")
    if found.questions < FEWEST:
        return f"{asked} cannot tell what is best, {FEWEST} can"
    return f"{asked} do not tell what is best, as whatever was tried leaves as much of full prefill's answers"


def _items(sources: list[Source], drawing: Drawing) -> Iterator[Item]:
    for source in sources:
        yield from source.items(drawing)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes)


def _shown_in(bar: Progress) -> Callable[[str, int, int], None]:
    """A line of `bar` for each step of a profile; without a terminal, a note at every tenth of a step."""
    lines: dict[str, TaskID] = {}
    tenths: dict[str, int] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in lines:
            lines[step] = bar.add_task(step, total=total)
        bar.update(lines[step], completed=done)
        tenth = 10 * done // max(1, total)
        if not notes.is_terminal and tenth > tenths.get(step, 0):
            tenths[step] = tenth
            notes.print(f"{escape(step)}: {done} of {total}")

    return show


def _layers_table(found: LayerProfile) -> Table:
    title = f"{counted(found.questions, 'question')}, {_share(found.keep)} kept, the rest dropped"
    table = _table(title, "layers", SAME, LOSS, "agreement with full attention")
    for tried in found.tried:
        cells = percent(tried.same), f"{tried.loss:.2f}", percent(tried.agreement)
        table.add_row(_named(tried.layers), *cells, style="bold green" if tried.layers == found.chosen else None)
    return table


def _earlies_table(found: LayerProfile) -> Table:
    title = f"With everything kept and layers {_named(found.chosen)}, tokens early in a chunk are recomputed sooner, by"
    return _outcomes(title, "its place to the power", found.earlies, found.early, "{:g}".format)


def _sights_table(found: LayerProfile) -> Table:
    title = "With everything kept, recomputed tokens attend to each other and to"
    return _outcomes(title, "of the rest, above the wide layers", found.sights, found.sees, _share)


def _widths_table(found: LayerProfile) -> Table:
    title = "With everything kept, recomputed tokens attend to all entries"
    return _outcomes(title, "on", found.widths, found.wide, lambda wide: f"{_share(wide)} of the layers")


def _weights_table(found: LayerProfile) -> Table:
    title = "With the rest dropped, the attention of the row that gives the first token counts (answer_weight)"
    return _outcomes(title, "times", found.weights, found.answer_weight, "{:g}".format)


def _vicinities_table(found: LayerProfile) -> Table:
    title = "With the rest dropped, how much a token's vicinity counts"
    return _outcomes(title, "vicinity", found.vicinities, found.vicinity, "{:g}".format)


def _budgets_table(found: LayerProfile) -> Table:
    return _outcomes("Other budgets, with all of that and the rest dropped", "kept", found.budgets, found.keep, _share)


def _waits_table(found: LayerProfile) -> Table:
    title = "With the rest dropped, what is kept is decided (settle_at) after"
    return _outcomes(title, "of the answer", found.waits, 0, lambda wait: counted(int(wait), "token"))


def _rests_table(found: LayerProfile) -> Table:
    title = "What becomes of the rest of the chunks (rest)"
    return _outcomes(title, "rest", found.rests, "int4", str)


def _holds_table(found: LayerProfile) -> Table:
    title = "How much of the chunks is held, in four bits except for a few tokens (hold)"
    return _outcomes(title, "of their tokens", found.holds, 1.0, _share)


def _outcomes(
    title: str, first: str, outcomes: Sequence[Outcome], in_force: float | str, label: Callable[[Any], str]
) -> Table:  # fmt: skip
    """What became of full prefill's answers, with the row marked that is in force."""
    table = _table(title, first, SAME, LOSS)
    for one in outcomes:
        style = "bold green" if one.value == in_force else None
        table.add_row(label(one.value), percent(one.same), f"{one.loss:.2f}", style=style)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


TABLES = (
    _layers_table, _earlies_table, _sights_table, _widths_table, _weights_table, _vicinities_table, _budgets_table,
    _waits_table, _rests_table, _holds_table,
)  # fmt: skip
"""In the order of measurement."""


def _share(keep: float) -> str:
    return f"{100 * keep:g} %"


def _named(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
