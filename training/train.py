"""Train the reader: `python -m training.train [config.toml]`. Stops and resumes at any time.

One process, one thread. The curriculum moves through the configuration's stages as accuracy passes each one's mark;
every batch is made of new worlds, so the accuracy in the log is on unseen worlds (with training-side names).
"""

from __future__ import annotations

import json
import random
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.data import PLAIN, Batch, make_batch
from training.initial import initialise
from training.model import Reader, Shape
from training.optimiser import Optimiser, follow, rate_at
from training.passages import Encoder, sizes_of
from training.paths import paths
from training.real import Library
from training.tokenizer import train_tokenizer

CONFIG = Path(__file__).with_name("config.toml")
EVERY = 20  # steps between log lines and checkpoints

Taught = tuple[str, int, int]
"""A head that is taught what to attend to: the kind of its target, its layer, and its number there."""


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
        self.optimiser = Optimiser(self.reader, config["optimiser"]["weight_decay"])
        self.library = Library.of(config["real"]) if "real" in config else None
        self.average = {name: weight.detach().clone() for name, weight in self.reader.named_parameters()}
        self.step, self.stage, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.correct: dict[str, float] = {}
        self.file = Path(config["folder"]) / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint beside the old one, then replace it."""
        state = {k: getattr(self, k) for k in ("step", "stage", "tokens", "seconds", "correct")}
        state |= {"reader": self.reader.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def resume(self) -> None:
        """Continue from the checkpoint if there is one."""
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.reader.load_state_dict(state.pop("reader"))
            self.optimiser.load_state_dict(state.pop("optimiser"))
            self.__dict__.update(state)


def taught(config: dict[str, Any]) -> dict[str, Taught]:
    """The heads that are taught what to attend to, by name: the first of a kind is named after it."""
    return {
        kind if number == 0 else f"{kind} {number + 1}": (kind, layer, head)
        for kind, heads in config["heads"].items()
        for number, (layer, head) in enumerate(heads)
    }


@dataclass
class Losses:
    """Mean losses of first answer tokens (the place to copy from), later ones, plain text, and pointing by kind;
    `right`: per target whether its token wins; `hits`: by kind, the mean attention on what is pointed at."""

    first: Tensor
    rest: Tensor
    plain: Tensor
    points: dict[str, Tensor]
    right: Tensor
    hits: dict[str, Tensor]

    def total(self, options: dict[str, Any]) -> Tensor:
        """The weighted sum that is minimised."""
        pointing = torch.stack([*self.points.values(), self.first.new_zeros(())]).sum()
        texts = self.first + self.rest * options["rest_weight"] + self.plain * options["plain_weight"]
        return cast(Tensor, texts + pointing * options["point_weight"])

    def detached(self) -> Losses:
        """The same numbers, without gradients."""
        points = {name: loss.detach() for name, loss in self.points.items()}
        return replace(
            self, first=self.first.detach(), rest=self.rest.detach(), plain=self.plain.detach(), points=points
        )


def losses(reader: Reader, batch: Batch, heads: dict[str, Taught]) -> Losses:
    """All losses of a batch; `heads`: by name, the heads that are taught what to attend to."""
    names = [name for name, (kind, *_) in heads.items() if batch.pointed[kind]]
    looks = [(*heads[name][1:], batch.points[heads[name][0]].at) for name in names]
    logits, found = reader(batch.ids, batch.positions, batch.mask, batch.split, batch.where, looks)
    each = cross_entropy(logits.float(), batch.targets, reduction="none")
    answer, first = batch.group >= 0, _first(batch)
    masses = {name: _mass(batch, heads[name][0], seen) for name, seen in zip(names, found, strict=True)}
    return Losses(
        _mean(each, first),
        _mean(each, answer & ~first),
        _mean(each, batch.group == PLAIN),
        {name: -_mean(mass, batch.points[heads[name][0]].meant) for name, mass in masses.items()},
        logits.argmax(-1) == batch.targets,
        {name: _mean(mass.detach().exp(), batch.points[heads[name][0]].meant) for name, mass in masses.items()},
    )


def _mean(values: Tensor, these: Tensor) -> Tensor:
    """The mean of these, 0 if there are none: a row may be too full for a question."""
    return values.masked_fill(~these, 0.0).sum() / these.sum().clamp(min=1)


def _mass(batch: Batch, kind: str, seen: Tensor) -> Tensor:
    """Log of the attention [B, P] on the golds of each point, from the head's logits [B, P, T]."""
    points, places = batch.points[kind], torch.arange(batch.ids.shape[1], device=seen.device)
    owner = batch.owner.gather(1, points.at)[..., None]
    visible = (places <= points.at[..., None]) & ((batch.owner[:, None] == 0) | (batch.owner[:, None] == owner))
    seen = seen.masked_fill(~visible, -1e9)
    return torch.logsumexp(seen.masked_fill(~points.golds, -1e9), -1) - torch.logsumexp(seen, -1)


def _first(batch: Batch) -> Tensor:
    """Which targets are the first token of an answer."""
    return (batch.group >= 0) & (batch.group != batch.group.roll(1))


def exact_matches(batch: Batch, right: Tensor) -> dict[str, float]:
    """Share of questions per task whose whole answer is right, given that its beginning was."""
    answer = batch.group >= 0
    wrong = torch.zeros(len(batch.tasks), device=right.device).index_add(
        0, batch.group[answer], (~right[answer]).float()
    )
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


def train_step(run: Run) -> dict[str, float]:
    """One update on fresh batches, each of one stage; returns what to log."""
    options, logged = run.config["optimiser"], {"loss": 0.0, "first": 0.0}
    rng = random.Random(f"{run.config['seed']}-{run.step}")
    for _ in range(options["batches"]):
        for key, value in _add_gradients(run, rng).items():
            logged[key] += value / options["batches"]
    torch.nn.utils.clip_grad_norm_(run.reader.parameters(), 1.0)
    run.optimiser.step(rate_at(run.step / options["total"], run.step, options))
    run.step += 1
    follow([*run.average.values()], [*run.reader.parameters()], run.step, options["average"])
    return logged


def _add_gradients(run: Run, rng: random.Random) -> dict[str, float]:
    """Add the gradients of one fresh batch, and its results to the running means."""
    options, stage = run.config["optimiser"], _choose_stage(rng, run)
    batch = make_batch(rng, run.encode, sizes_of(run.config["stages"][stage]), run.library)
    with torch.autocast("cpu", torch.bfloat16, enabled=options["bfloat16"]):
        found = losses(run.reader, batch, taught(run.config))
    total = found.total(options)
    (total / options["batches"]).backward()
    run.tokens += int(batch.ids.ne(run.encode.pad).sum())
    if _first(batch).any():
        _follow(run.correct, f"stage {stage}", float(found.right[_first(batch)].float().mean()), 0.1)
    if stage == run.stage:
        for name, share in (exact_matches(batch, found.right) | found.hits).items():
            _follow(run.correct, name, float(share), 0.04)
    return {"loss": total.item(), "first": float(found.first.detach())}


def _follow(means: dict[str, float], name: str, value: float, share: float) -> None:
    means[name] = (1 - share) * means.get(name, value) + share * value


def advance(run: Run) -> None:
    """Move to the next stage once the present one is passed."""
    tasks = ("one_hop", "two_hop", "earlier_chunk")
    scores = [run.correct[t] for t in tasks if t in run.correct] or [1.0]  # real text has none of them
    seen = f"stage {run.stage}" in run.correct
    if seen and sum(scores) / len(scores) > run.config["stages"][run.stage]["pass"]:
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
    main(*paths(__doc__))
