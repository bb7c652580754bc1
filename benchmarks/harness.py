"""What the benchmarks share: options, the exactness gate, turns in one process, and showing and saving rows."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.rows import write_rows
from benchmarks.shapes import model_named
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.parity import check_parity

T = TypeVar("T")


def options_of(
    doc: str | None, rounds: int, devices: bool = False, models: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The options that every benchmark has, `--device` if it also runs on a GPU, `--model` if it takes one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print only, write no CSV rows")
    if devices:
        parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    if models:
        parser.add_argument("--model", default="random", choices=models)
    return parser


def opened(options: argparse.Namespace) -> ModelAdapter:
    """The model that the options name, past the exactness gate, on as many threads as they say."""
    torch.set_num_threads(options.threads)
    return gated(options.model, model_named(options.model, options.device))


def gated(label: str, adapter: ModelAdapter) -> ModelAdapter:
    """The adapter, once reuse is shown to be exact on it. Raises `ParityError` if nothing may be reported of it."""
    gate = check_parity(adapter)
    errors = {"recompute": gate.recompute_error, "reuse": gate.reuse_error, "decoding": gate.decode_error}
    print(f"{label}: exactness gate green ({', '.join(f'{name} {error:.0e}' for name, error in errors.items())})")
    return adapter


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int, warm_ups: int = 1) -> dict[str, list[T]]:
    """What every way returns, way by way, in `rounds` interleaved rounds after `warm_ups` warm-up rounds."""
    seen: dict[str, list[T]] = defaultdict(list)
    for number in range(rounds + warm_ups):
        for name, way in ways.items():
            result = way()
            if number >= warm_ups:
                seen[name].append(result)
    return dict(seen)


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def publish(name: str, rows: Sequence[Mapping[str, Any]], shown: int, dry: bool) -> None:
    """Print the first `shown` columns of every row; append the rows to `results/<name>.csv` unless `dry`."""
    for row in rows:
        print(" ".join(f"{key}={_short(row[key])}" for key in list(row)[:shown]))
    if not dry and rows:
        print("written to", write_rows(name, rows).name)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
