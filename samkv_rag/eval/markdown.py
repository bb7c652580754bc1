"""A report as Markdown: what was run, the verdicts, a table and its pictures for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samkv_rag.eval.results import Results, TaskResults
from samkv_rag.eval.statistics import Estimate
from samkv_rag.eval.summary import Row, rows_of
from samkv_rag.eval.tasks import TASKS, Task
from samkv_rag.eval.verdicts import Verdict, verdicts

_HEAD = """# Results

Made by `{command}` from the records in these folders, never by hand.

Every method answers the same token ids. Numbers in brackets are 95 % bootstrap intervals over questions. *asked*: the
share that a method was told to keep, or to recompute where it keeps everything. *kept*: chunk tokens that stay
resident, as they are or in four bits. *recomputed*: chunk tokens times layers that were computed again, early full
layers charged. `samkv` keeps all, most of it in four bits: see *KV*. `samkv:rest=drop` keeps what it was asked to, and
CacheBlend and its relatives all as it is. EM and F1 are SQuAD's, in points.
*- full*: the paired difference of F1 to full prefill; *right*: the same among the questions that full answers exactly.
*same*: answers that are full prefill's, word by word (blank where an evaluation is older than this column).
*first token*: median time from the call. *KV*: resident bytes of keys and values. *scored*: bytes that choosing read.
*work*: operations up to the first token, as a share of full's. `anchors_only`, `random`, `random_rest` (SamKV's first
token, and random tokens for the others) and `no_context` are controls.

An evaluation that lists several environments was gone on with later or with other code: its settings may have been
timed apart, and their first tokens, in tables and pictures, do not compare. Their work does.
"""
_TITLES = (
    "method", "asked", "kept %", "recomputed %", "EM", "F1", "F1 - full", "F1 - full, right", "same %", "first token",
    "KV", "scored", "work %",
)  # fmt: skip

Pictures = Mapping[str, Sequence[str]]
"""Links to the pictures of each evaluation, by its name."""


def document(results: Sequence[Results], command: str, pictures: Pictures) -> str:
    """The text of the whole report."""
    judged = [
        (one, task, rows, _judged(one, task, rows)) for one in results for task in one.tasks for rows in [rows_of(task)]
    ]
    parts = [_HEAD.format(command=command), "## Verdicts\n", _verdicts([(o, t, v) for o, t, _, v in judged])]
    for one in results:
        parts += [f"## {one.name}\n", _told(one)]
        parts += [f"![{one.name}]({link})\n" for link in pictures.get(one.name, ())]
        parts += [_section(one, task, rows, found) for own, task, rows, found in judged if own is one]
    return "\n".join(parts)


def _judged(one: Results, task: TaskResults, rows: Sequence[Row]) -> list[Verdict]:
    known = _known(one, task)
    return verdicts(rows, known.margin if known else 1.0)


def _known(one: Results, task: TaskResults) -> Task | None:
    """The generated task, which has no digest: a file may have its name."""
    return TASKS.get(task.task) if [task.task, ""] in one.run["arguments"]["data"] else None


def _verdicts(judged: Sequence[tuple[Results, TaskResults, list[Verdict]]]) -> str:
    """The verdicts of each task; beside them what the difference alone says, whether or not the task can tell."""
    lines = [
        f"| {one.name} | {task.task} | `{found.method}` | {found.word} | {found.difference} |"
        for one, task, those in judged
        for found in those
    ]
    head = "| evaluation | task | 15 % chosen | no accuracy lost | difference to full alone |"
    return "\n".join([head, "|---|---|---|---|---|", *lines, ""])


def _told(one: Results) -> str:
    """What was run, and on what."""
    arguments, model = one.run["arguments"], one.run["model"]
    where = "; ".join(_environment(found) for found in one.run["environments"])
    chunks = arguments["chunks"] or "12 (tasks) or all (files)"
    size = f"of up to {arguments['chunk_tokens']} tokens" if arguments["chunk_tokens"] else "of their own length"
    behind = f", ingested behind `{sink}`" if (sink := arguments.get("sink_prefix", "none")) != "head" else ""
    return (
        f"Model `{model['name']}` (fingerprint `{model['fingerprint'][:12]}`), {chunks} chunks {size}{behind}, seed "
        f"{arguments['seed']}{_measured(arguments.get('profile'))}. {where}.\n"
    )


def _measured(profile: Mapping[str, Any] | None) -> str:
    if profile is None:
        return ""
    return ", with a profile of the model: " + ", ".join(f"{name} {value}" for name, value in profile.items())


def _environment(found: Mapping[str, Any]) -> str:
    commit = f", commit {found['commit']}" if found["commit"] else ""
    versions = f"torch {found['torch']}, transformers {found['transformers']}, Python {found['python']}"
    return f"{found['device']}, {found['threads']} thread(s), {versions}{commit}"


def _section(one: Results, task: TaskResults, rows: Sequence[Row], judged: Sequence[Verdict]) -> str:
    known = _known(one, task)
    tokens = f"{task.of('prompt_tokens', 'full').mean():,.0f}" if task.ids else "no"
    asked = f"{len(task.ids):,} question" + "s" * (len(task.ids) != 1)
    left = [f"{task.skipped} did not fit the model"] * bool(task.skipped)
    left += [f"{task.unfinished} unfinished"] * bool(task.unfinished)
    outside = f" ({', '.join(left)}: left out)" if left else ""
    lines = [
        f"### {task.task}\n",
        f"{asked}{outside}, on average {tokens} prompt tokens.\n",
    ]
    lines += [f"Across chunks: {known.cross}\n"] if known else []
    lines += [f"`{found.method}`: **{found.word}.** {found.text}\n" for found in judged]
    return "\n".join([*lines, *([table(rows)] if task.ids else [])])


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; work is relative to the first row's, which is full's."""
    lines = [_line(_TITLES), _line(["---"] * len(_TITLES))]
    lines += [_line(_cells(row, rows[0].flops)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Row, full_flops: float) -> list[str]:
    return [
        f"`{row.method}`",
        "" if row.ratio is None else f"{row.ratio:.0%}",
        f"{100 * row.kept:.1f}",
        f"{100 * row.recomputed:.1f}",
        _spread(row.em),
        _spread(row.f1),
        "" if row.setting == "full" else _spread(row.minus_full, "+"),
        "" if row.setting == "full" else _spread(row.where_full_is_right, "+"),
        "" if row.setting == "full" or row.same is None else _spread(row.same),
        f"{row.ttft * 1000:.0f} ms",
        _bytes(row.kv_bytes),
        _bytes(row.scored_bytes) if row.scored_bytes else "0",
        f"{100 * row.flops / full_flops:.1f}" if full_flops else "",
    ]


def _spread(found: Estimate, sign: str = "") -> str:
    if found.n == 0:
        return "none"
    value, low, high = (format(100 * part + 0, f"{sign}.1f") for part in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
