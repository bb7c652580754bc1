"""Train the reader: `python -m training.train [config.toml]`. Stops and resumes at any time.

One process, one thread. The curriculum goes from one chunk to sixteen as accuracy passes each stage's mark;
every batch is made of new worlds, so the accuracy in the log is on unseen worlds (with training-side names).
"""

from __future__ import annotations

import json
import random
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.data import Batch, Encoder, Sizes, make_batch
from training.initial import initialise
from training.model import Reader, Shape
from training.tokenizer import train_tokenizer

CONFIG = Path(__file__).with_name("config.toml")
EVERY = 20  # steps between log lines and checkpoints


def read_config(path: Path = CONFIG) -> dict[str, Any]:
    """The configuration as nested dictionaries."""
    return tomllib.loads(path.read_text())


def load_encoder(config: dict[str, Any]) -> Encoder:
    """The tokenizer of this run, trained on first use."""
    folder = Path(config["folder"]) / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(folder, config["vocab"], config["tokenizer_worlds"])
    return Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))


class Run:
    """Model, optimiser, curriculum position and running averages: everything a checkpoint holds."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.encode = config, load_encoder(config)
        self.reader = Reader(Shape(vocab=config["vocab"], **config["shape"]))
        pieces = [self.encode.tokenizer.decode([i]) for i in range(config["vocab"])]
        initialise(self.reader, pieces, config["seed"])
        self.optimiser = torch.optim.AdamW(_groups(self.reader, config["optimiser"]), betas=(0.9, 0.98))
        self.step, self.stage, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.correct: dict[str, float] = {}
        self.file = Path(config["folder"]) / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one, then replace it."""
        state = {k: getattr(self, k) for k in ("step", "stage", "tokens", "seconds", "correct")}
        state |= {"reader": self.reader.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def resume(self) -> None:
        """Continue from the checkpoint if there is one."""
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.reader.load_state_dict(state.pop("reader"))
            self.optimiser.load_state_dict(state.pop("optimiser"))
            self.__dict__.update(state)


def _groups(reader: Reader, options: dict[str, Any]) -> list[dict[str, Any]]:
    matrices = [p for p in reader.parameters() if p.dim() > 1]
    others = [p for p in reader.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": options["weight_decay"]}, {"params": others, "weight_decay": 0.0}]


def rate_at(step: int, options: dict[str, Any]) -> float:
    """Learning rate: warm-up, plateau, linear fall over the last `decay` part."""
    left = (options["total"] - step) / (options["decay"] * options["total"])
    return float(options["rate"] * min(1.0, (step + 1) / options["warmup"]) * max(0.05, min(1.0, left)))


def losses(reader: Reader, batch: Batch, rest_weight: float, plain_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss, loss of first answer tokens (the place to copy from), and per target whether its token wins."""
    logits = reader(batch.ids, batch.positions, batch.mask, batch.split, batch.where)
    each = cross_entropy(logits, batch.targets, reduction="none")
    answer, first = batch.group >= 0, _first(batch)
    found, rest, plain = each[first].mean(), each[answer & ~first].mean(), each[~answer].mean()
    return found + rest_weight * rest + plain_weight * plain, found.detach(), logits.argmax(-1) == batch.targets


def _first(batch: Batch) -> Tensor:
    """Which targets are the first token of an answer."""
    return (batch.group >= 0) & (batch.group != batch.group.roll(1))


def exact_matches(batch: Batch, right: Tensor) -> dict[str, float]:
    """Share of questions per task whose whole answer is right, given that its beginning was."""
    answer = batch.group >= 0
    wrong = torch.zeros(len(batch.tasks)).index_add(0, batch.group[answer], (~right[answer]).float())
    found: dict[str, list[bool]] = {}
    for task, count in zip(batch.tasks, wrong.tolist(), strict=True):
        found.setdefault(task, []).append(count == 0)
    return {task: sum(flags) / len(flags) for task, flags in found.items()}


def _choose_stage(rng: random.Random, run: Run) -> int:
    """The present stage in the configured share of batches, else one of the earlier ones by weight."""
    weights = [stage.get("weight", 1.0) for stage in run.config["stages"][: run.stage]]
    if not weights or rng.random() < run.config["present"]:
        return run.stage
    return rng.choices(range(run.stage), weights)[0]


def _sizes(config: dict[str, Any], stage: int) -> Sizes:
    return Sizes(**{k: v for k, v in config["stages"][stage].items() if k not in ("pass", "weight")})


def train_step(run: Run) -> dict[str, float]:
    """One update on a fresh batch; returns what to log."""
    options = run.config["optimiser"]
    rng = random.Random(f"{run.config['seed']}-{run.step}")
    stage = _choose_stage(rng, run)
    sizes = _sizes(run.config, stage)
    batch = make_batch(rng, run.encode, sizes)
    for group in run.optimiser.param_groups:
        group["lr"] = rate_at(run.step, options)
    loss, first, right = losses(run.reader, batch, options["rest_weight"], options["plain_weight"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.reader.parameters(), 1.0)
    run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    run.step, run.tokens = run.step + 1, run.tokens + int(batch.ids.ne(run.encode.pad).sum())
    name, found = f"stage {stage}", float(right[_first(batch)].float().mean())
    run.correct[name] = 0.9 * run.correct.get(name, found) + 0.1 * found
    if stage == run.stage:
        for task, share in exact_matches(batch, right).items():
            run.correct[task] = 0.96 * run.correct.get(task, share) + 0.04 * share
    return {"loss": loss.item(), "first": first.item()}


def advance(run: Run) -> None:
    """Go to the next stage when the present one is passed."""
    tasks = ("one_hop", "two_hop", "earlier_chunk")
    scores = [run.correct[t] for t in tasks if t in run.correct]
    if scores and sum(scores) / len(scores) > run.config["stages"][run.stage]["pass"]:
        run.stage, run.correct = min(run.stage + 1, len(run.config["stages"]) - 1), {}


def record(run: Run, sums: dict[str, float]) -> None:
    """Append a line with the averages of the last `EVERY` steps to the log, and write the checkpoint."""
    line: dict[str, Any] = {"step": run.step, "stage": run.stage, "tokens": run.tokens, "seconds": round(run.seconds)}
    line |= {key: round(value / EVERY, 4) for key, value in sums.items()}
    line["exact"] = {task: round(share, 3) for task, share in run.correct.items()}
    with run.file.with_name("log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    advance(run)
    run.save()


def main(path: Path = CONFIG) -> None:
    """Train from the last checkpoint to the configured number of steps."""
    torch.set_num_threads(1)
    config = read_config(path)
    Path(config["folder"]).mkdir(parents=True, exist_ok=True)
    run = Run(config)
    run.resume()
    sums: dict[str, float] = {}
    while run.step < config["optimiser"]["total"]:
        begun = time.perf_counter()
        for key, value in train_step(run).items():
            sums[key] = sums.get(key, 0.0) + value
        run.seconds += time.perf_counter() - begun
        if run.step % EVERY == 0:
            record(run, sums)
            sums = {}
    run.save()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
