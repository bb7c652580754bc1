"""`samkv-rag explain`: retrieve as `ask` does, answer by several methods, and write a page of what they kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from samkv_rag.cli.ask import engine_for, found, model_of
from samkv_rag.cli.console import kept, notes, out
from samkv_rag.errors import SamKVError
from samkv_rag.eval.settings import parse, split
from samkv_rag.explain import Explanation, explain


@dataclass(frozen=True, slots=True)
class Request:
    """The command's options, as typed."""

    question: str
    out: Path
    methods: str
    keep: float | None
    top_k: int
    model: str | None
    max_new_tokens: int
    store: Path
    kv_dtype: str | None = None


def run(request: Request) -> None:
    """Write the page; one line for each method on stdout."""
    methods = split(request.methods)
    for method in methods:  # a typing error is reported before anything is computed
        parse(method)
    if not request.out.absolute().parent.is_dir() or request.out.is_dir():
        raise SamKVError(f"{request.out} cannot be written: --out takes a file in a folder that exists.")
    index, passages = found(request.question, request.store, request.top_k)
    model = model_of(index, request.store, request.model)
    engine = engine_for(index, request.store, model, request.kv_dtype, request.keep)
    try:
        with notes.status("Answering"):
            explanation = explain(
                engine, request.question, [passage.text for passage in passages], methods, request.keep,
                max_new_tokens=request.max_new_tokens,
            )  # fmt: skip
    finally:
        engine.close()
    explanation.save(request.out)
    _tell(explanation, request.out)


def _tell(explanation: Explanation, file: Path) -> None:
    for method in explanation.methods:
        report = method.answer.report
        found = kept(report.kept_ratio, report.packed_tokens / max(1, report.chunk_tokens))
        answer = " ".join(method.answer.text.split()) or "(nothing)"
        out.print(f"{escape(method.label)}: {escape(answer)} (kept {found})", soft_wrap=True)
    notes.print(f"The page is in {escape(str(file))}; open it in a browser.", soft_wrap=True)
