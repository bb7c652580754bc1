"""On which layer does the question find the answer? Shares kept at 15 %, by layer. `python -m benchmarks.recall`

This chooses a model's selection layers (`samkv_selection_layers` in its config). An occurrence of the answer in the
chunks counts as kept when all its tokens are.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch

from benchmarks.rows import where, write_rows
from samkv_rag import ChunkKVStore, SamKV, SamKVEngine
from samkv_rag.eval.worlds import examples
from samkv_rag.methods import AnchorsOnly, Method, Random, Run
from samkv_rag.types import PromptPlan, Selection

TASKS = ("one_hop", "earlier_chunk", "two_hop")


def occurrences(plan: PromptPlan, answers: Sequence[Sequence[int]]) -> list[tuple[int, range]]:
    """(chunk, token range) wherever one of the token sequences stands."""
    found = []
    for index, chunk in enumerate(plan.chunks):
        for answer in answers:
            size = len(answer)
            starts = range(len(chunk.token_ids) - size + 1)
            found += [
                (index, range(s, s + size)) for s in starts if list(chunk.token_ids[s : s + size]) == list(answer)
            ]
    return found


def kept_share(selection: Selection, spots: Sequence[tuple[int, range]]) -> float:
    """Share of the occurrences whose tokens are all kept."""
    kept = [set(tokens.tolist()) for tokens in selection.kept]
    return sum(kept[index].issuperset(tokens) for index, tokens in spots) / len(spots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = SamKVEngine.from_pretrained(options.model, store=ChunkKVStore()).load()
    layers = range(engine.adapter.shape.layers)
    methods: dict[str, Method] = {f"layer {layer}": SamKV(layers=(layer,)) for layer in layers}
    methods |= {"all layers": SamKV(layers=tuple(layers)), "paper": SamKV.paper(), "random": Random()}
    methods |= {"anchors_only": AnchorsOnly()}
    rows = []
    for task in TASKS:
        shares: dict[str, list[float]] = {name: [] for name in methods}
        for texts, question, answer, _ in itertools.islice(examples(3, options.chunks, task), options.limit):
            keys = engine.precompute(texts)
            plan = engine.plan_question(question, texts)
            ids = [engine.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
            spots = occurrences(plan, ids)
            for name, method in methods.items() if spots else ():
                shares[name].append(
                    kept_share(method.prepare(Run(plan, engine.adapter, engine.store)).selection, spots)
                )
            engine.forget(keys)
        for name, found in shares.items():
            row = {"task": task, "method": name, "n": len(found), "kept_answers": sum(found) / len(found)}
            rows.append(row | where())
            print(f"{task:14} {name:14} {row['kept_answers']:.2f}  n = {len(found)}")
    if not options.dry:
        write_rows("recall", rows)


if __name__ == "__main__":
    main()
