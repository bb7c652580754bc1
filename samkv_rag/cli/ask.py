"""`samkv-rag ask`: retrieve, answer, and say what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from samkv_rag.cli.console import counted, human_bytes, human_seconds, kept, notes, out, percent, print_json
from samkv_rag.cli.engine import FLOOR, index_root, model_name, open_engine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.settings import parse
from samkv_rag.methods import Method
from samkv_rag.retrieval import ChunkIndex, Passage
from samkv_rag.types import KV_DTYPES

if TYPE_CHECKING:
    from samkv_rag.types import Answer, Report


@dataclass(frozen=True, slots=True)
class Request:
    """A question and how to answer it."""

    question: str
    method: str
    keep: float | None
    top_k: int
    model: str | None
    max_new_tokens: int
    store: Path
    show_context: bool
    as_json: bool
    kv_dtype: str | None = None


def run(request: Request) -> None:
    """Answer on stdout, the cost on stderr; with `as_json` one object on stdout."""
    index, passages = found(request.question, request.store, request.top_k)
    model = model_of(index, request.store, request.model)
    if request.show_context and not request.as_json:
        show(passages)
    method, given = _method(request.method)
    engine = engine_for(index, request.store, model, request.kv_dtype, given.get("keep", request.keep))
    try:
        keep = None if "keep" in given else request.keep
        answer = _answer(engine, request, method, keep, [passage.text for passage in passages])
    finally:
        engine.close()
    if request.as_json:
        print_json(as_object(request.question, answer, passages))
    else:
        tell(answer.report)


def found(question: str, store: Path, top_k: int) -> tuple[ChunkIndex, list[Passage]]:
    """The store's index, and its passages for a question in prompt order."""
    if not question.strip():
        raise SamKVError('The question is empty; write it in quotes: samkv-rag ask "Where is ...?"')
    index = ChunkIndex.open(index_root(store))
    return index, list(index.retrieve(question, top_k))


def model_of(index: ChunkIndex, store: Path, wanted: str | None) -> str:
    """The model that the index was made for; any other has no caches there."""
    made_for = index.manifest.settings.model
    if wanted and model_name(wanted) != made_for:
        raise SamKVError(
            f"{store} holds the caches of {made_for}: leave --model out, or ingest again with --model {wanted}."
        )
    return made_for


def engine_for(index: ChunkIndex, store: Path, model: str, kv_dtype: str | None, keep: float | None) -> Any:
    """An engine over the index's caches; unless `keep` is given it keeps `FLOOR` tokens of a small context."""
    made_as = index.manifest.settings.kv_dtype
    if kv_dtype not in (None, made_as):
        again = f", or ingest again with --kv-dtype {kv_dtype}" if kv_dtype in KV_DTYPES else ""
        raise SamKVError(f"{store} holds caches of kv_dtype {made_as}: leave --kv-dtype out{again}.")
    return open_engine(model, store, made_as, FLOOR if keep is None else 0)


def _method(text: str) -> tuple[str | Method, dict[str, Any]]:
    """The method and the options given: a name alone, which the engine knows, or `samkv:recompute=0.33`, parsed."""
    return (text, {}) if text.isidentifier() else parse(text)


def _answer(
    engine: Any, request: Request, method: str | Method, keep: float | None, chunks: list[str]
) -> Answer:  # fmt: skip
    options: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "method": method}
    if keep is not None:
        options["keep"] = keep
    stream = engine.stream_answer(request.question, chunks=chunks, **options)
    try:
        for piece in stream:
            if not request.as_json:
                out.print(piece, end="", markup=False, soft_wrap=True)
    finally:
        stream.close()
        if not request.as_json:
            out.print()
    answer: Answer = stream.answer
    return answer


def show(passages: Sequence[Passage]) -> None:
    """Print the passages in prompt order, with their places."""
    for passage in passages:
        found = "neighbour" if passage.score is None else f"score {passage.score:.2f}"
        place = escape(f"{Path(passage.path).name} #{passage.position} ({found})")
        out.print(f"[dim]{place}[/dim]", soft_wrap=True)
        out.print(passage.text, markup=False, soft_wrap=True)
        out.print()


def tell(report: Report) -> None:
    """Print one line with what was kept, computed and held."""
    first, total = human_seconds(report.ttft_seconds), max(1, report.chunk_tokens)
    notes.print(
        f"[dim]{report.method}: {report.prompt_tokens} prompt tokens, kept "
        f"{kept(report.kept_ratio, report.packed_tokens / total)} of the passages, "
        f"recomputed {percent(report.recomputed_tokens / total)} of them, "
        f"{human_bytes(report.kv_bytes_resident)} of K/V instead of "
        f"{human_bytes(report.kv_bytes_full)}, first token after {first}[/dim]",
        soft_wrap=True,
    )
    if report.misses:
        notes.print(f"[dim]not cached, so prefilled: {counted(len(report.misses), 'passage')}[/dim]", soft_wrap=True)
    for note in report.notes:
        notes.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True)


def as_object(question: str, answer: Answer, passages: Sequence[Passage]) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "question": question,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "report": answer.report.as_dict(),
        "passages": [asdict(passage) for passage in passages],
    }
