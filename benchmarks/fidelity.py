"""What is left of full prefill's own answers? `python -m benchmarks.fidelity --model FILE --data SET --out FOLDER`

Any model, any questions; gold answers are looked at only to say how often full prefill's own answer holds one. That
answer, greedy and of at most 32 tokens, is read through every method's cache, token by token: how often it would have
been given again ("same"), and how many nats of its log-likelihood are lost, 10 at most a question, with 95 % bootstrap
intervals over questions. A weak reader will do: it is compared with itself.

Answers are kept in FOLDER, question by question: the command goes on where it was stopped, and several may run at a
time with folders of their own. With `--pack` the CSV rows of all folders named are written, one a method and set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import gated
from benchmarks.rows import where, write_rows
from samkv_rag import SamKVEngine
from samkv_rag.eval.items import Item
from samkv_rag.eval.metrics import normalise
from samkv_rag.eval.settings import Setting, settings
from samkv_rag.eval.sources import Drawing, Source
from samkv_rag.eval.statistics import estimates
from samkv_rag.explain.recording import Recording
from samkv_rag.profiling.answers import left_of, own_answer
from samkv_rag.profiling.asking import Asking, can_be_asked
from samkv_rag.types import PromptPlan

METHODS = "reuse,cacheblend,samkv,samkv:vicinity=0,samkv.paper,random_rest"
ANSWERS = "answers.jsonl"
Row = dict[str, Any]


def answered(engine: SamKVEngine, items: Sequence[Item], chosen: Sequence[Setting]) -> Iterator[Row]:
    """A row for each question that fits the model: what every setting leaves of its answer, and how long it was."""

    def measure(own: SamKVEngine, plan: PromptPlan, _: int) -> Row:
        answer = own_answer(own, plan)
        row: Row = {"tokens": plan.n_tokens, "chunk_tokens": plan.chunk_tokens, "by": {}}
        row["text"] = own.tokenizer.decode(answer.ids, skip_special_tokens=True)
        for setting in chosen:
            method = Recording(setting.method(plan))
            left = left_of(answer, own, plan, method)
            kept = sum(map(len, method.last[0][1].kept)) / plan.chunk_tokens
            row["by"][setting.label] = {"same": left.same, "loss": left.loss, "kept": kept}
        return row

    for item in (item for item in items if can_be_asked(engine, item)):
        (row,) = Asking(engine, [item], lambda *_: None).each("", [measure])[0]
        text = normalise(row.pop("text"))
        told = any(normalise(gold) in text for gold in item.answers)
        yield {"id": item.id, "source": item.task, "told": told, **row}


def run(options: argparse.Namespace) -> None:
    """Answer what is missing in `options.out`."""
    file = options.out / ANSWERS
    options.out.mkdir(parents=True, exist_ok=True)
    done = {row["id"] for row in _read(options.out)}
    drawing = Drawing(options.limit, options.seed)
    sources = [Source.of(spec) for spec in options.data.split(",")]
    with SamKVEngine.from_pretrained(options.model, store=":memory:") as engine, file.open("a") as out:
        gated(Path(options.model).name, engine.adapter)
        chosen = settings(options.methods, [float(share) for share in options.keep.split(",")])[
            1:
        ]  # full is the answer
        items = [item for source in sources for item in source.items(drawing) if item.id not in done]
        for number, row in enumerate(answered(engine, items, chosen)):
            out.write(json.dumps({"model": Path(options.model).name, **row}) + "\n")
            out.flush()
            print(f"{number + 1} of {len(items)}: {row['id']}", flush=True)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """CSV rows, one a model, source and setting, in the order of the questions' first appearance."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["source"]), []).append(row)
    return [one for (model, source), asked in groups.items() for one in _of_source(model, source, asked)]


def _of_source(model: str, source: str, asked: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    about = {
        "model": model, "source": source, "questions": len(asked),
        "prompt_tokens": float(np.mean([row["tokens"] for row in asked])),
        "told": float(np.mean([row["told"] for row in asked])),
    }  # fmt: skip
    for label in asked[0]["by"]:
        left = [row["by"][label] for row in asked]
        same, loss = estimates(np.array([[one["same"], one["loss"]] for one in left], dtype=np.float64))
        yield {
            **where(), **about, "method": label, "kept": float(np.mean([one["kept"] for one in left])),
            "same": same.value, "same_low": same.low, "same_high": same.high,
            "loss": loss.value, "loss_low": loss.low, "loss_high": loss.high,
        }  # fmt: skip


def _read(folder: Path) -> list[Row]:
    file = folder / ANSWERS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="a folder, a GGUF file, a hub id")
    parser.add_argument("--data", default="one_hop", help="tasks or question files, with commas between them")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--keep", default="0.15")
    parser.add_argument("--limit", type=int, default=40, help="questions of each set, the first ones")
    parser.add_argument("--seed", type=int, default=17, help="of generated tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path, nargs="*", metavar="FOLDER", help="write the rows of these, ask nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.pack is None:
        run(options)
    rows = summary([row for folder in options.pack or [options.out] for row in _read(folder)])
    for row in rows:
        print(
            "{source:36s} {method:26s} same {same:4.0%}, loss {loss:5.2f} [{loss_low:.2f}, {loss_high:.2f}]".format(
                **row
            )
        )
    if options.pack is not None:
        print(write_rows("fidelity", rows))


if __name__ == "__main__":
    main()
