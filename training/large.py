"""Train the large reader on one GPU: `python -m training.large [large.toml] --seconds 480`.

The mixture of stages, the learning rate and the end follow the clock, so that a run fills the time that it is
given. Worker processes make the batches, each a function of the seed and its number; every batch of all stages has
the same number of tokens, so that the layers are compiled once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaForCausalLM

from samkv_rag.model.graphs import Graphs
from training.data import Batch, make_batch
from training.export import save_reader
from training.initial import initialise
from training.model import Layer, Reader, Shape
from training.optimiser import Optimiser, follow, rate_at
from training.pack import CONFIG
from training.passages import Encoder, Sizes, sizes_of
from training.recording import Recorder, level
from training.shelf import Shelf
from training.train import Losses, exact_matches, losses, read_config, taught

EVERY = 50  # steps between log lines
SAVE = 120  # seconds between saves of the weights


class Batches(IterableDataset[tuple[int, bytes]]):
    """An endless stream of (stage, pickled batch); `progress` is how much of the run is over, 0 to 1."""

    def __init__(self, config: dict[str, Any], encode: Encoder, shelf: Shelf, progress: Synchronized[float]) -> None:
        self.config, self.encode, self.shelf, self.progress = config, encode, shelf, progress

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        worker = get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        while True:
            rng = random.Random(f"{self.config['seed']}-{number}")
            stage = choose_stage(rng, self.config, self.progress.value)
            pointing = rng.random() < self.config["optimiser"]["pointed"]
            sizes = exact_sizes(self.config["stages"][stage])
            batch = make_batch(rng, self.encode, sizes, self.shelf, pointing=pointing and sizes.asked > 0)
            yield stage, pickle.dumps(level(batch))
            number += step


def choose_stage(rng: random.Random, config: dict[str, Any], progress: float) -> int:
    """Draw a stage by its share at this point of the run: `mix` has the shares at beginning, middle and end."""
    weights = [share_at(stage["mix"], progress) for stage in config["stages"]]
    return rng.choices(range(len(weights)), weights)[0]


def share_at(mix: list[float], progress: float) -> float:
    """The value at `progress` (0 to 1), interpolated linearly between the values of `mix`."""
    place = min(max(progress, 0.0), 1.0) * (len(mix) - 1)
    left = min(int(place), len(mix) - 2)
    return mix[left] + (mix[left + 1] - mix[left]) * (place - left)


def further(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run that starts from a reader: the values of `further` replace the others."""
    stages = [stage | {"mix": [stage["mix"][-1]] * 2} | stage.get("further", {}) for stage in config["stages"]]
    return config | {"optimiser": config["optimiser"] | config["further"], "stages": stages}


def exact_sizes(stage: dict[str, Any]) -> Sizes:
    """The sizes of a stage's batches, which fill all the room they are given."""
    return replace(sizes_of(stage), exact=True)


@dataclass
class Sums:
    """The values of a log line, added up on the device: only the line waits for them."""

    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor | float) -> None:
        """Add to a mean."""
        self.losses[name] = self.losses.get(name, 0.0) + value  # type: ignore[assignment]
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """All means; starts them anew."""
        found = {name: round(float(value) / self.counts[name], 4) for name, value in sorted(self.losses.items())}
        self.losses, self.counts = {}, {}
        return found


class Run:
    """A reader in training."""

    def __init__(
        self, config: dict[str, Any], encode: Encoder, device: torch.device, start: Path | None = None,
        recorded: bool = True,
    ) -> None:  # fmt: skip
        self.config, self.encode, self.device = config, encode, device
        self.reader = Reader(Shape(vocab=config["vocab"], **config["shape"]))
        if start is None:
            initialise(self.reader, [encode.tokenizer.decode([i]) for i in range(config["vocab"])], config["seed"])
        else:
            self.reader.load_state_dict(LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict())
        self.reader.to(device)
        self.optimiser = Optimiser(self.reader, config["optimiser"]["weight_decay"])
        self.weights = list(self.reader.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        recorded = recorded and device.type == "cuda"
        self.recorder = Recorder(self.weights, self.gradients, Graphs(device)) if recorded else None
        self.step, self.tokens, self.sums = 0, 0, Sums()

    def gradients(self, batch: Batch, plain_weight: Tensor | float) -> tuple[Losses, Sequence[Tensor]]:
        """The losses of a batch, and the gradients of what is minimised."""
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            found = losses(self.reader, batch, taught(self.config) if batch.points else {})
        total = found.total(self.config["optimiser"] | {"plain_weight": plain_weight})
        return found, torch.autograd.grad(total, self.weights)

    def update(self, stage: int, batch: Batch, progress: float) -> None:
        """One update from one batch."""
        options, batch = self.config["optimiser"], batch.to(self.device)
        weight = self.config["stages"][stage].get("plain_weight", options["plain_weight"])
        if self.recorder is None:
            found, grads = self.gradients(batch, weight)
        else:
            found, grads = self.recorder(batch, weight), self.recorder.grads
        for one, grad in zip(self.weights, grads, strict=True):
            one.grad = grad
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step(rate_at(progress, self.step, options))
        self.step, self.tokens = self.step + 1, self.tokens + batch.ids.numel()
        follow(self.average, self.weights, self.step, options["average"])
        self._note(stage, batch, found)

    def _note(self, stage: int, batch: Batch, found: Losses) -> None:
        name = self.config["stages"][stage]["name"]
        self.sums.add(f"{name} plain", found.plain.detach())
        if batch.tasks:
            self.sums.add(f"{name} first", found.first.detach())
        if batch.tasks and self.step % 10 == 1:
            kinds = {kind for kind, points in batch.points.items() if points.meant.any()}
            hits = {head: hit for head, hit in found.hits.items() if head.split()[0] in kinds}
            for task, share in (exact_matches(batch, found.right) | hits).items():
                self.sums.add(f"{name} {task}", share)

    def record(self, seconds: float) -> None:
        """Print a line of means since the last one, and append it to the log."""
        line = json.dumps({"step": self.step, "tokens": self.tokens, "seconds": round(seconds, 1)} | self.sums.means())
        print(line, flush=True)
        with (Path(self.config["folder"]) / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Write the averaged weights as a transformers folder."""
        names = (name for name, _ in self.reader.named_parameters())
        state = {name: weight.float().cpu() for name, weight in zip(names, self.average, strict=True)}
        save_reader(self.config, state, Path(self.config["folder"]) / "weights")


def compile_layers() -> None:
    """Fuse what comes before and after attention; one compilation serves all layers."""
    Layer.before = torch.compile(Layer.before, dynamic=False)  # type: ignore[method-assign]
    Layer.after = torch.compile(Layer.after, dynamic=False)  # type: ignore[method-assign]


def train(run: Run, batches: Iterator[tuple[int, bytes]], progress: Synchronized[float], seconds: float) -> None:
    """Update until the time is up; log and save on the way."""
    begun, saves = time.perf_counter(), iter(range(SAVE, int(seconds), SAVE))
    due = next(saves, None)
    while progress.value < 1:
        stage, packed = next(batches)
        run.update(stage, pickle.loads(packed), progress.value)
        passed = time.perf_counter() - begun
        if run.step % EVERY == 0:
            run.record(passed)
        if due is not None and passed > due:
            run.save()
            due = next(saves, None)
        progress.value = passed / seconds
    run.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--seconds", type=float, required=True, help="how long to train")
    parser.add_argument("--workers", type=int, default=14, help="processes that make batches")
    parser.add_argument(
        "--start", type=Path, help="a reader's folder, to train further (`further` in the configuration)"
    )
    parser.add_argument("--unrecorded", action="store_true", help="launch every kernel of every update")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    config = read_config(options.config)
    if options.start:
        config = further(config)
    folder = Path(config["folder"])
    encode = Encoder(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")))
    progress = multiprocessing.Value("d", 0.0)
    feed = Batches(config, encode, Shelf.open(folder / "library.xz"), progress)  # type: ignore[arg-type]
    loader = DataLoader(
        feed, batch_size=None, num_workers=options.workers, prefetch_factor=6 if options.workers else None
    )
    batches = iter(loader)  # forks the workers, before the GPU is touched
    if options.device == "cuda":
        compile_layers()
    run = Run(config, encode, torch.device(options.device), options.start, not options.unrecorded)
    train(run, batches, progress, options.seconds)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
