"""Exact match of an exported reader on held-out worlds: `python -m training.evaluate [folder] [--n 300]`.

`full` is the ordinary forward pass. `reuse` keeps every position but lets no chunk see another one, which is
what concatenating independently cached chunks does; instruction and question behave as before. An answer counts
when every one of its tokens, the end included, is the most likely one after the gold tokens before it: exactly
when greedy decoding gives the gold answer. Several questions about one context go through one forward pass,
at the same positions and without seeing each other.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from samkv_rag.eval import worlds
from samkv_rag.eval.tasks.worlds import WORLD
from samkv_rag.eval.worlds import Question
from training.export import WEIGHTS
from training.passages import Encoder

PER_CONTEXT = 4  # questions of one task about one context, at most


def load(folder: Path) -> tuple[PreTrainedModel, Encoder]:
    """Model and encoder of an exported folder, as any user would load them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    return model, Encoder(AutoTokenizer.from_pretrained(folder).backend_tokenizer)


def sees(owner: Tensor, reuse: bool) -> Tensor:
    """Additive mask [1, 1, T, T]; owner [T] is 0 for glue, 1... for chunks, -1... for questions."""
    same, causal = owner[:, None] == owner[None, :], torch.ones(len(owner), len(owner)).bool().tril()
    allowed = same | (owner >= 0)[None, :]
    if reuse:
        instruction = torch.arange(len(owner)) < int((owner != 0).nonzero()[0])
        allowed = same | instruction[None, :] | (owner < 0)[:, None] & (owner >= 0)[None, :]
    return torch.zeros(allowed.shape).masked_fill(~(allowed & causal), torch.finfo(torch.float32).min)[None, None]


def layout(
    encode: Encoder, chunks: list[str], questions: list[Question]
) -> tuple[list[int], list[int], list[int], list[range]]:
    """ids, owners and positions of the whole row, and for each question the places of its answer's tokens."""
    ids, owner = list(encode.head), [0] * len(encode.head)
    for number, chunk in enumerate(chunks):
        glue, body = encode.between * (number > 0), encode(chunk)
        ids += glue + body
        owner += [0] * len(glue) + [number + 1] * len(body)
    positions, length, answers = list(range(len(ids))), len(ids), list[range]()
    for number, question in enumerate(questions):
        prompt, answer = encode.question(question.text), encode.answer(question.answer)
        answers.append(range(len(ids) + len(prompt), len(ids) + len(prompt) + len(answer)))
        ids += prompt + answer
        owner += [-1 - number] * len(prompt + answer)
        positions += range(length, length + len(prompt + answer))
    return ids, owner, positions, answers


@torch.no_grad()
def answered(
    model: PreTrainedModel, encode: Encoder, chunks: list[str], questions: list[Question], reuse: bool
) -> list[bool]:
    """For each question whether greedy decoding gives exactly the gold answer."""
    ids, owner, positions, answers = layout(encode, chunks, questions)
    row = torch.tensor([ids])
    mask = sees(torch.tensor(owner), reuse)
    logits = model(row, attention_mask=mask, position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    right = logits[:-1].argmax(-1) == row[0, 1:]
    return [bool(right[places.start - 1 : places.stop - 1].all()) for places in answers]


def contexts(task: str, chunks: int, held_out: bool) -> Iterator[tuple[list[str], list[Question]]]:
    """Endless contexts of exactly `chunks` chunks with questions of `task`, on the worlds that it is asked on."""
    rng = random.Random(f"evaluate-{chunks}-{task}")
    while True:
        made = worlds.draft(rng.randrange(2**40), held_out, max(8, chunks), **WORLD.get(task, {}))
        shown = worlds.context(made, rng, chunks)
        questions = [question for question in shown.questions if question.task == task][:PER_CONTEXT]
        if questions and len(shown.chunks) == chunks:
            yield shown.chunks, questions


def score(folder: Path, chunks: int, count: int, held_out: bool = True) -> dict[tuple[str, str], tuple[int, int]]:
    """(right, asked) by (task, method) over at least `count` questions a task, on contexts of exactly `chunks`."""
    model, encode = load(folder)
    right, asked = Counter[tuple[str, str]](), Counter[str]()
    for task in worlds.TASKS:
        for texts, questions in contexts(task, chunks, held_out):
            asked[task] += len(questions)
            for method in ("full", "reuse"):
                right[task, method] += sum(answered(model, encode, texts, questions, method == "reuse"))
            if asked[task] >= count:
                break
    return {(task, method): (right[task, method], asked[task]) for task in worlds.TASKS for method in ("full", "reuse")}


def main() -> None:
    """Print one JSON line per number of chunks, task and method, with a 95 % interval."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=WEIGHTS)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--seen-names", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for chunks in options.chunks:
        for (task, method), (right, asked) in score(options.folder, chunks, options.n, not options.seen_names).items():
            share = right / asked
            line = {"chunks": chunks, "task": task, "method": method, "exact": round(share, 3), "n": asked}
            line["interval"] = round(1.96 * math.sqrt(share * (1 - share) / asked), 3)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
