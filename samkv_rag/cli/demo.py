"""`samkv-rag demo`: the bundled handbook, ten questions, three methods side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from samkv_rag.cli.console import human_bytes, human_seconds, kept, notes, out, print_json
from samkv_rag.cli.engine import FLOOR, chunk_tokens, index_root, model_name, open_engine
from samkv_rag.cli.errors import going_on
from samkv_rag.cli.ingest import ingest, tell
from samkv_rag.demo import HANDBOOK, DemoQuestion, questions
from samkv_rag.errors import SamKVError
from samkv_rag.eval.metrics import exact_match
from samkv_rag.reader import BUNDLED
from samkv_rag.retrieval import ChunkIndex, generations
from samkv_rag.retrieval.embedding import OFFLINE

METHODS = ("samkv", "full", "reuse")
MAX_NEW_TOKENS = 24
_KINDS = {
    "one_hop": "one passage says it",
    "two_hop": "two passages together say it",
    "earlier_chunk": "an earlier passage says of whom",
}
Results = list[dict[str, Any]]


def run(model: str | None, keep: float | None, top_k: int, store: Path | None, as_json: bool) -> None:
    """Ingest, ask, compare; tables on stdout, or one JSON object."""
    name = model_name(model or BUNDLED)
    with _folder(store) as folder:
        _require_own(folder)
        engine = open_engine(name, folder, min_kept_tokens=FLOOR if keep is None else 0)
        try:
            tell(ingest(engine, HANDBOOK, folder, name, chunk_tokens(name), OFFLINE))
            index = ChunkIndex.open(index_root(folder))
            results = _ask_all(engine, index, keep, top_k, as_json)
        finally:
            engine.close()
        summary = summarise(results, name, index)
    if as_json:
        print_json({"questions": results, "summary": summary})
    else:
        _closing(summary, store)


def _require_own(folder: Path) -> None:
    """Raise `SamKVError` if a store has documents other than the demo's: their caches would be made by its model."""
    root = index_root(folder)
    if generations.current(root) is None:
        return
    if others := [path for path in ChunkIndex.open(root).documents if HANDBOOK.resolve() not in Path(path).parents]:
        raise SamKVError(f"{folder} has other documents ({others[0]}, ...): give the demo a folder of its own.")


@contextmanager
def _folder(store: Path | None) -> Iterator[Path]:
    if store is not None:
        with going_on():
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="samkv-demo-") as folder:
        try:
            yield Path(folder)
        except KeyboardInterrupt as stop:
            said = "The folder was a temporary one, so nothing is kept; --store names one that stays."
            raise KeyboardInterrupt(said) from stop


def _ask_all(engine: Any, index: ChunkIndex, keep: float | None, top_k: int, quiet: bool) -> Results:
    results: Results = []
    for number, question in enumerate(questions(), start=1):
        chunks = [passage.text for passage in index.retrieve(question.question, top_k)]
        if number == 1:  # a process's first forward includes warming up; no method should be charged for that
            engine.answer(question.question, chunks=chunks, max_new_tokens=1, method="full")
        results.append(_ask(engine, question, chunks, keep))
        if not quiet:
            out.print(_table(number, results[-1]))
    return results


def _ask(engine: Any, question: DemoQuestion, chunks: list[str], keep: float | None) -> dict[str, Any]:
    """The question's part of the JSON object."""
    methods = {}
    for method in METHODS:
        options = {"keep": keep} if method == "samkv" and keep is not None else {}
        answer = engine.answer(
            question.question, chunks=chunks, max_new_tokens=MAX_NEW_TOKENS, method=method, **options
        )
        methods[method] = {
            "text": answer.text,
            "correct": exact_match(answer.text, question.expected),
            "report": answer.report.as_dict(),
        }
    return {"question": question.question, "expected": question.expected, "kind": question.kind, "methods": methods}


def summarise(results: Results, model: str, index: ChunkIndex) -> dict[str, Any]:
    """Per method: how many answers are right, and the mean or median cost."""
    methods = {name: _summary([result["methods"][name] for result in results]) for name in METHODS}
    for figures in methods.values():
        figures["ttft_speedup"] = methods["full"]["ttft_seconds"] / max(figures["ttft_seconds"], 1e-9)
    chunks = sum(len(entry.nodes) for entry in index.documents.values())
    return {
        "model": model,
        "files": len(index.documents),
        "chunks": chunks,
        "questions": len(results),
        "methods": methods,
    }


def _summary(answers: list[Mapping[str, Any]]) -> dict[str, Any]:
    reports = [answer["report"] for answer in answers]
    means = ("kept_ratio", "recompute_ratio", "kv_bytes_resident", "kv_bytes_full")
    return {
        "correct": sum(answer["correct"] for answer in answers),
        "of": len(answers),
        **{name: fmean(report[name] for report in reports) for name in means},
        "packed_ratio": fmean(report["packed_tokens"] / max(report["chunk_tokens"], 1) for report in reports),
        "ttft_seconds": median(report["ttft_seconds"] for report in reports),
    }


def _table(number: int, result: Mapping[str, Any]) -> Table:
    about = f"expected: {escape(result['expected'])}; {_KINDS[result['kind']]}"
    title = f"{number}. {escape(result['question'])}  [dim]{about}[/dim]"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True, min_width=len("method"))
    table.add_column("answer", no_wrap=True, overflow="ellipsis", width=13)
    for name, width in {"": 1, "kept\n(4 bits)": 10, "recomp.": 7, "K/V held": 15, "first token": 13}.items():
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    full = result["methods"]["full"]["report"]["ttft_seconds"]
    for name, answer in result["methods"].items():
        table.add_row(*_cells(name, answer, full))
    return table


def _cells(name: str, answer: Mapping[str, Any], full_ttft: float) -> tuple[str, ...]:
    report = answer["report"]
    share = report["kv_bytes_resident"] / max(report["kv_bytes_full"], 1)
    speedup = full_ttft / max(report["ttft_seconds"], 1e-9)
    packed = report["packed_tokens"] / max(report["chunk_tokens"], 1)
    return (
        name,
        escape(" ".join(answer["text"].split()) or "(nothing)"),
        "[green]✓[/green]" if answer["correct"] else "[red]✗[/red]",
        f"{report['kept_ratio']:.0%}" + (f" ({packed:.0%})" if packed else ""),
        f"{report['recomputed_tokens'] / max(report['chunk_tokens'], 1):.0%}",
        f"{human_bytes(report['kv_bytes_resident'])} ({share:.0%})",
        f"{human_seconds(report['ttft_seconds'])} ({speedup:.1f}x)",
    )


def _closing(summary: Mapping[str, Any], store: Path | None) -> None:
    methods = summary["methods"]
    samkv, full, reuse = (methods[name] for name in METHODS)
    out.print(
        f"\n[bold]samkv answered {samkv['correct']} of {samkv['of']}[/bold] (full {full['correct']}, reuse "
        f"{reuse['correct']}) with {kept(samkv['kept_ratio'], samkv['packed_ratio'])} of the retrieved tokens kept, "
        f"{human_bytes(samkv['kv_bytes_resident'])} of K/V instead of {human_bytes(samkv['kv_bytes_full'])}, and the "
        f"first token {samkv['ttft_speedup']:.1f} times as fast as full prefill. Ten questions over short contexts "
        "show how it works, not how well: docs/results.md and docs/benchmarks.md do that.",
        soft_wrap=True,
    )
    at = "" if store is None else f" --store {escape(str(store))}"
    notes.print(
        'Next: samkv-rag ingest YOUR_FOLDER, then samkv-rag ask "..."; --model takes any Hugging Face '
        f"id or folder; samkv-rag check --model ... tests it first.{at and f' This store: {at.strip()}.'}",
        soft_wrap=True,
    )
