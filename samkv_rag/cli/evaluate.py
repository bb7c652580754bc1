"""`samkv-rag eval`: every method on the same questions, with a bar; it can be stopped and resumed at any time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from samkv_rag.cli.console import notes
from samkv_rag.cli.engine import open_engine, shown
from samkv_rag.cli.errors import going_on
from samkv_rag.errors import SamKVError
from samkv_rag.eval.records import Records
from samkv_rag.eval.runfile import open_run
from samkv_rag.eval.runner import Evaluation, evaluate
from samkv_rag.eval.settings import settings
from samkv_rag.eval.sources import Drawing, sources_of
from samkv_rag.eval.tasks import ChunkSize
from samkv_rag.methods import METHODS
from samkv_rag.reader import BUNDLED
from samkv_rag.store.profiles import ModelProfile, Profiles

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine


@dataclass(frozen=True)
class Request:
    """The command's options, as typed."""

    model: str | None
    data: list[str]
    methods: str | None
    keep: str
    limit: int
    chunks: int | None
    chunk_tokens: int | None
    seed: int
    max_new_tokens: int | None
    sink_prefix: str
    out: Path
    profile: Path | None = None


def run(request: Request) -> None:
    """Answer everything that is missing in `request.out`, and say how to see it."""
    sources = sources_of(request.data)
    if not sources:
        raise SamKVError("--data names nothing to ask; give a task or a file.")
    chosen = settings(request.methods or ",".join(METHODS), _shares(request.keep))
    model = request.model or BUNDLED
    with open_engine(model, Path(":memory:"), sink_prefix=request.sink_prefix) as engine:
        engine.load()
        profile = None if request.profile is None else _profile_in(request.profile, engine, model)
        if profile is not None:
            engine.store.profiles.put(engine.model_fingerprint, profile)
        if request.methods is None and engine.adapter.rotary.latent:
            chosen = [one for one in chosen if not getattr(one.base, "summaries", False)]
            notes.print("This model caches latents: methods that look at summaries of blocks are left out.")

        def count(text: str) -> int:
            return len(engine.tokenizer(text, add_special_tokens=False)["input_ids"])

        size = ChunkSize(request.chunk_tokens, count) if request.chunk_tokens else None
        drawing = Drawing(request.limit, request.seed, request.chunks, size)
        wanted = Evaluation(sources, chosen, drawing, request.max_new_tokens)
        arguments = {
            "data": [[source.name, source.digest] for source in sources],
            "settings": [one.label for one in chosen],
            "methods": [repr(one.base) for one in chosen],
            "limit": request.limit,
            "chunks": request.chunks,
            "chunk_tokens": request.chunk_tokens,
            "seed": request.seed,
            "max_new_tokens": request.max_new_tokens,
            "sink_prefix": request.sink_prefix,
            "profile": None if profile is None else profile.chosen,
        }
        for source in sources:
            source.check(drawing)
        open_run(request.out, {"name": shown(model), "fingerprint": engine.fingerprint}, arguments)
        with going_on(), _bar() as progress:
            tasks = {s.name: progress.add_task(escape(s.name), total=request.limit * len(chosen)) for s in sources}
            evaluate(engine, wanted, Records(request.out), lambda name, done: progress.advance(tasks[name], done))
            for task in tasks.values():  # a file may hold fewer questions than were requested
                progress.update(task, total=progress.tasks[task].completed)
    notes.print(f"Done. Tables and pictures: samkv-rag report {escape(str(request.out))}", soft_wrap=True)


def _profile_in(store: Path, engine: SamKVEngine, model: str) -> ModelProfile:
    try:
        found = Profiles(store).get(engine.model_fingerprint)
    except ValueError as error:
        raise SamKVError(f"{error}; run samkv-rag profile again.") from error
    if found is None:
        raise SamKVError(f"{store} holds no profile of {model}: run samkv-rag profile --store {store} first.")
    return found


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",") if part.strip()]
        if not shares:
            raise ValueError
        return shares
    except ValueError as error:
        raise SamKVError(f"--keep takes shares between 0 and 1 with commas between them, not {text!r}.") from error


@contextmanager
def _bar() -> Iterator[Progress]:
    """Answers done of all, time spent and time left, a line for each source."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=notes) as progress:
        yield progress
