"""Curves of a training run: `python -m training.plot [config.toml]` writes training/curves.png from the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from training.pointing import KINDS
from training.train import CONFIG, read_config

TASKS = ("one_hop", "two_hop", "earlier_chunk", "unanswerable", "listing", "comparison")
HEADS = KINDS


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, in the order of their steps; of repeated steps the last."""
    lines = {line["step"]: line for line in map(json.loads, file.read_text().splitlines())}
    return [lines[step] for step in sorted(lines)]


def plot(lines: list[dict[str, Any]], target: Path) -> None:
    """Loss of the first answer token, exact match per task, and how much of their attention the taught heads give to
    what they should look at, over tokens; stages as vertical lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below, lowest) = pyplot.subplots(3, 1, figsize=(9.5, 9), sharex=True)
    tokens = [line["tokens"] / 1e6 for line in lines]
    above.plot(tokens, [line["first"] for line in lines])
    above.set_ylabel("loss, first answer token (nats)")
    for task in TASKS:
        below.plot(tokens, [line["exact"].get(task) for line in lines], label=task)
    for head in HEADS:
        lowest.plot(tokens, [line["exact"].get(head) for line in lines], label=head)
    for before, after in zip(lines, lines[1:], strict=False):
        if before["stage"] != after["stage"]:
            for axis in (above, below, lowest):
                axis.axvline(after["tokens"] / 1e6, color="grey", linewidth=0.5)
    below.set_ylabel("exact match, present stage")
    lowest.set_ylabel("attention of taught heads on target")
    lowest.set_xlabel("tokens seen (millions)")
    for axis in (below, lowest):
        axis.set_ylim(0, 1)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    config = read_config(*map(Path, sys.argv[1:2])) if len(sys.argv) > 1 else read_config(CONFIG)
    plot(read_log(Path(config["folder"]) / "log.jsonl"), Path(__file__).with_name("curves.png"))
