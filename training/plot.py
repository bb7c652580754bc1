"""Curves of a training run: `python -m training.plot [config.toml]` writes training/curves.png from the log, or
training/large.png for the log of `training.large`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.paths import paths
from training.pointing import KINDS
from training.train import CONFIG, read_config

TASKS = ("one_hop", "two_hop", "earlier_chunk", "unanswerable", "listing", "comparison")
HEADS = KINDS


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log in order of steps; of a repeated step, the last line."""
    lines = {line["step"]: line for line in map(json.loads, file.read_text().splitlines())}
    return [lines[step] for step in sorted(lines)]


def plot(lines: list[dict[str, Any]], target: Path) -> None:
    """Plot, over tokens, the loss of the first answer token, exact match per task, and how much of their attention the
    taught heads give to what they should attend to; stages as vertical lines."""
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


SHOWN = {  # from a log line of `training.large`: a task of a stage
    "alike one_hop": "one-hop",
    "mixed more two_hop": "two-hop",
    "unnamed more earlier_chunk": "subject in an earlier chunk",
    "mixed more listing": "lists",
    "mixed more comparison": "comparisons",
    "made more read": "generated, about pages",
    "made more chain": "generated, over two pages",
    "people more read": "people's (seen many times)",
}


def plot_large(lines: list[dict[str, Any]], target: Path) -> None:
    """Plot plain text's loss, and exact matches of answers in training batches, given their beginnings, over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9.5, 7), sharex=True)
    for axis, names in ((above, {"text plain": "text", "long text plain": "text, 4,096 tokens"}), (below, SHOWN)):
        for name, label in names.items():
            seen = [(line["tokens"] / 1e6, line[name]) for line in lines[1:] if name in line]
            axis.plot(*zip(*seen, strict=True), label=label)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    above.set_ylabel("loss of the next token (nats)")
    below.set_ylabel("exact match in training batches")
    below.set_xlabel("tokens seen (millions)")
    figure.tight_layout()
    figure.savefig(target, dpi=100)


def main() -> None:
    """Plot the log of a configuration, according to the trainer that it is for."""
    config = read_config(*(paths(__doc__) or [CONFIG]))
    lines, here = read_log(Path(config["folder"]) / "log.jsonl"), Path(__file__)
    if "pass" in config["stages"][0]:
        plot(lines, here.with_name("curves.png"))
    else:
        plot_large(lines, here.with_name("large.png"))


if __name__ == "__main__":
    main()
