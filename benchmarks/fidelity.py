"""What is left of full prefill's own answers? `python -m benchmarks.fidelity --model FILE --data SET --out FOLDER`

Any model, any questions. Full prefill's own answer, greedy and of at most 32 tokens (`--answer-tokens`), is read
through every method's cache, token by token: how often the same answer would have been given ("same"), and how many
nats of its log-likelihood are lost, at most 10 per question, with 95 % bootstrap intervals over questions. A weak
reader will do: it is compared with itself. Where a method would have given another answer, it writes that one; gold
answers only serve to count how often one is in full prefill's answers ("told") and in a method's ("tells").

A method's gains do not offset losses, so a mean is biased upwards. Answers are kept in FOLDER, question by question:
the command continues where it was stopped, only with the same model, questions and methods, and several may run at the
same time, each with its own folder. `--pack FOLDER...` writes the CSV rows of what they hold, one per method and set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import gated
from benchmarks.rows import write_rows
from samkv_rag import SamKVEngine
from samkv_rag.cli.engine import shown
from samkv_rag.eval.items import Item
from samkv_rag.eval.metrics import normalise
from samkv_rag.eval.records import RECORDS, SKIPPED, Records, read_records
from samkv_rag.eval.runfile import open_run, read_run
from samkv_rag.eval.settings import Setting, settings
from samkv_rag.eval.sources import Drawing, Source
from samkv_rag.eval.statistics import estimates
from samkv_rag.explain.recording import Recording
from samkv_rag.profiling.answers import ANSWER_TOKENS, left_of, method_answer, own_answer
from samkv_rag.profiling.asking import Asking, can_be_asked
from samkv_rag.types import KV_DTYPES, PromptPlan

MEANS = ("prompt_tokens", "answer_tokens", "told", "tells", "kept")
METHODS = (
    "reuse,cacheblend,samkv,samkv:rest=drop,samkv:rest=drop,settle_at=8,samkv:rest=drop,vicinity=1,"
    "samkv:rest=drop,keep=0.3,vicinity=1,random_rest"
)
Row = dict[str, Any]


def answered(engine: SamKVEngine, item: Item, chosen: Sequence[Setting], most: int) -> list[Row]:
    """What every setting leaves of the answer to a question, of at most `most` tokens; for a question that does not
    fit, one row that says so."""
    about: Row = {"id": item.id, "task": item.task}
    if not can_be_asked(engine, item, most):
        return [{**about, "setting": SKIPPED, "why": "no passages, or too long for the model"}]

    def measure(own: SamKVEngine, plan: PromptPlan, _: int) -> list[Row]:
        def text_of(ids: Sequence[int]) -> str:
            return own.tokenizer.decode(ids, skip_special_tokens=True)

        answer, rows = own_answer(own, plan, most), list[Row]()
        text = text_of(answer.ids)
        tokens = {"prompt_tokens": plan.n_tokens, "answer_tokens": len(answer.ids)}
        common = {**about, **tokens, "full": text, "told": tells(text, item.answers)}
        for setting in chosen:
            method = Recording(setting.method(plan))
            left = left_of(answer, own, plan, method)
            kept = sum(map(len, method.selection.kept)) / plan.chunk_tokens
            given = text if left.same else text_of(method_answer(own, plan, method, most))
            told = {"answer": given, "tells": tells(given, item.answers)}
            rows.append(
                {**common, "setting": setting.label, "same": left.same, "loss": left.loss, "kept": kept, **told}
            )
        return rows

    return Asking(engine, [item], lambda *_: None).each("", [measure])[0][0]


def tells(text: str, golds: Sequence[str]) -> bool:
    """Whether a text contains one of the gold answers, as whole words."""
    return any(wanted and f" {wanted} " in f" {normalise(text)} " for wanted in map(normalise, golds))


def run(options: argparse.Namespace) -> None:
    """Answer what is missing in `options.out`; raises `SamKVError` if it holds another run."""
    drawing = Drawing(options.limit, options.seed)
    sources = [Source.of(spec) for spec in options.data.split(",")]
    chosen = settings(options.methods, [options.keep])[1:]  # full prefill is what they are compared with
    arguments = {
        "data": [[source.name, source.digest] for source in sources],
        "settings": [setting.label for setting in chosen],
        "methods": [repr(setting.base) for setting in chosen],
        "limit": options.limit,
        "seed": options.seed,
        "answer_tokens": options.answer_tokens,
        "kv_dtype": options.kv_dtype,
    }
    with SamKVEngine.from_pretrained(options.model, store=":memory:", kv_dtype=options.kv_dtype) as engine:
        gated(shown(options.model), engine.adapter)
        open_run(options.out, {"name": shown(options.model), "fingerprint": engine.fingerprint}, arguments)
        records = Records(options.out)
        asked = {item.id: item for source in sources for item in source.items(drawing)}
        open_ones = [name for name in asked if name not in {done for done, _ in records.done}]
        for number, name in enumerate(open_ones):
            records.append(answered(engine, asked[name], chosen, options.answer_tokens))
            print(f"{number + 1} of {len(open_ones)}: {name}", flush=True)


def summary(folder: Path) -> list[Row]:
    """CSV rows of a folder, one per source and setting; its run says where it was measured."""
    told = read_run(folder)
    where = {"date": _day(folder), **told["environments"][0], "model": told["model"]["name"]}
    where["most_tokens"] = told["arguments"]["answer_tokens"]
    stored = told["arguments"].get("kv_dtype", "model")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in read_records(folder / RECORDS):
        groups.setdefault(record["task"], []).append(record)
    rows = [{**where, **row} for task, records in groups.items() for row in _of_source(task, records)]
    return rows if stored == "model" else [{**row, "method": f"{row['method']} in {stored}"} for row in rows]


def _day(folder: Path) -> str:
    return date.fromtimestamp((folder / RECORDS).stat().st_mtime).isoformat()


def _of_source(source: str, records: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    skipped = sum(record["setting"] == SKIPPED for record in records)
    for label in dict.fromkeys(record["setting"] for record in records if record["setting"] != SKIPPED):
        left = [record for record in records if record["setting"] == label]
        same, loss = estimates(np.array([[one["same"], one["loss"]] for one in left], dtype=np.float64))
        known = {name: [one[name] for one in left if name in one] for name in MEANS}
        means = {name: float(np.mean(values)) if values else "" for name, values in known.items()}
        yield {
            "source": source, "questions": len(left), "skipped": skipped, "method": label, **means,
            "same": same.value, "same_low": same.low, "same_high": same.high,
            "loss": loss.value, "loss_low": loss.low, "loss_high": loss.high,
        }  # fmt: skip


LINE = "{source:36s} {method:34s} same {same:4.0%}, loss {loss:5.2f} [{loss_low:.2f}, {loss_high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="a folder, a GGUF file, a hub id")
    parser.add_argument("--data", default="one_hop", help="tasks or question files, with commas between them")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--keep", type=float, default=0.15)
    parser.add_argument("--limit", type=int, default=40, help="questions of each set, the first ones")
    parser.add_argument("--seed", type=int, default=17, help="of generated tasks")
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS, help="how many an answer has at most")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="model", help="how the chunks' caches are stored")
    parser.add_argument("--threads", type=int, default=1)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="where the answers are kept")
    what.add_argument("--pack", type=Path, nargs="+", metavar="FOLDER", help="write the rows of these, ask nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.out:
        run(options)
    rows = [row for folder in dict.fromkeys(options.pack or [options.out]) for row in summary(folder)]
    for row in rows:
        print(LINE.format(**row))
    if options.pack and rows:
        print(write_rows("fidelity", rows))


if __name__ == "__main__":
    main()
