"""Records as columns of numbers, task by task; and the compact file that is committed in their place."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samkv_rag.errors import SamKVError
from samkv_rag.eval.records import RECORDS, SKIPPED, read_records
from samkv_rag.eval.runfile import RUN, read_run
from samkv_rag.eval.statistics import Array

PACKED = RECORDS + ".gz"
REFERENCE = "full"

_OF_REPORT = {
    "kept": "kept_ratio",
    "recomputed": "recomputed_layers_ratio",
    "ttft": "ttft_seconds",
    "kv_bytes": "kv_bytes_resident",
    "scored_bytes": "scored_bytes",
    "flops": "flops",
    "prompt_tokens": "prompt_tokens",
}
COLUMNS = ("em", "f1", *_OF_REPORT)
SAME = "same"
"""The column that says whether the answer is full prefill's, word for word: not in files packed before it existed."""


@dataclass(frozen=True)
class TaskResults:
    """The questions of a task that were answered under every setting. `columns` are `(questions, settings)` each.

    `skipped` questions did not fit the model, `unfinished` ones lack some settings (the run was stopped).
    """

    task: str
    settings: tuple[str, ...]
    ids: tuple[str, ...]
    columns: Mapping[str, Array]
    skipped: int = 0
    unfinished: int = 0

    def of(self, column: str, setting: str) -> Array:
        """A column's values under one setting, question by question."""
        return self.columns[column][:, self.settings.index(setting)]


@dataclass(frozen=True)
class Results:
    """One evaluation: its folder's name, its `run.json` and its tasks."""

    name: str
    run: Mapping[str, Any]
    tasks: tuple[TaskResults, ...]


def read_results(folder: Path) -> Results:
    """The results of a folder with records or with their compact form; raises `SamKVError` if it has neither."""
    run = read_run(folder)
    if (folder / RECORDS).exists():
        tasks = collected(read_records(folder / RECORDS), run["arguments"]["settings"])
    elif (folder / PACKED).exists():
        tasks = [_unpacked(json.loads(line)) for line in gzip.decompress((folder / PACKED).read_bytes()).splitlines()]
    else:
        raise SamKVError(f"{folder} has neither {RECORDS} nor {PACKED}; run samkv-rag eval --out {folder} first.")
    return Results(folder.resolve().name, run, tuple(tasks))


def collected(records: Iterable[Mapping[str, Any]], settings: Sequence[str]) -> list[TaskResults]:
    """The records as columns, tasks in the order of their first record."""
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for record in records:
        found.setdefault(record["task"], {}).setdefault(record["id"], {})[record["setting"]] = record
    return [_task(task, by_id, settings) for task, by_id in found.items()]


def _task(task: str, by_id: Mapping[str, Mapping[str, Mapping[str, Any]]], settings: Sequence[str]) -> TaskResults:
    skipped = [name for name, answers in by_id.items() if SKIPPED in answers]
    whole = {name: answers for name, answers in by_id.items() if all(label in answers for label in settings)}
    rows = [[_numbers(answers[label]) for label in settings] for answers in whole.values()]
    table = np.array(rows, dtype=np.float64).reshape(len(whole), len(settings), len(COLUMNS))
    columns = {name: table[:, :, number] for number, name in enumerate(COLUMNS)}
    if REFERENCE in settings and all("prediction" in one for answers in whole.values() for one in answers.values()):
        said = [[answers[label]["prediction"] for label in settings] for answers in whole.values()]
        alike = [[float(text == row[settings.index(REFERENCE)]) for text in row] for row in said]
        columns[SAME] = np.array(alike, dtype=np.float64).reshape(len(whole), len(settings))
    unfinished = len(by_id) - len(whole) - len(skipped)
    return TaskResults(task, tuple(settings), tuple(whole), columns, len(skipped), unfinished)


def _numbers(record: Mapping[str, Any]) -> list[float]:
    """The numbers of a record, rounded as when packed, so that a report is the same from either form."""
    exact = [record["em"], record["f1"], *(record["report"][name] for name in _OF_REPORT.values())]
    return [float(f"{value:.5g}") for value in exact]


def pack(folder: Path, target: Path) -> Path:
    """Write the compact form of `folder` to `target/<its name>`: numbers alone, no texts. Returns that folder."""
    results = read_results(folder)
    place = target / results.name
    place.mkdir(parents=True, exist_ok=True)
    if place.resolve() != folder.resolve():
        shutil.copyfile(folder / RUN, place / RUN)
    lines = "".join(json.dumps(_packed(task), separators=(",", ":")) + "\n" for task in results.tasks)
    (place / PACKED).write_bytes(gzip.compress(lines.encode(), mtime=0))
    return place


def _packed(task: TaskResults) -> dict[str, Any]:
    columns = {name: [[_short(x) for x in row] for row in values.T] for name, values in task.columns.items()}
    return {**vars(task), "columns": columns}


def _short(value: float) -> float:
    return int(value) if value == int(value) else float(value)


def _unpacked(line: Mapping[str, Any]) -> TaskResults:
    shape = len(line["settings"]), len(line["ids"])
    columns = {name: np.array(rows, dtype=np.float64).reshape(shape).T for name, rows in line["columns"].items()}
    known = {name: tuple(line[name]) for name in ("settings", "ids")}
    return TaskResults(line["task"], columns=columns, skipped=line["skipped"], unfinished=line["unfinished"], **known)
