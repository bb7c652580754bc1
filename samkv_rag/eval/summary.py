"""One row per setting: its scores, its loss against full prefill on the same questions, and its costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samkv_rag.errors import SamKVError
from samkv_rag.eval.results import REFERENCE, SAME, TaskResults
from samkv_rag.eval.statistics import Array, Estimate, estimates

CONTROLS = ("anchors_only", "random", "random_rest", "no_context")
OURS = "samkv"


@dataclass(frozen=True)
class Row:
    """`minus_full` is the paired difference of F1; `where_full_is_right` the same among the questions that full answers
    exactly. Shares and scores are between 0 and 1; `ttft` is the median in seconds; costs are means. `same`: the share
    of answers that are full's, word by word, where that is known."""

    setting: str
    em: Estimate
    f1: Estimate
    minus_full: Estimate
    where_full_is_right: Estimate
    kept: float
    recomputed: float
    ttft: float
    kv_bytes: float
    scored_bytes: float
    flops: float
    same: Estimate | None = None

    @property
    def method(self) -> str:
        """The setting without its swept share."""
        return method_of(self.setting)

    @property
    def ratio(self) -> float | None:
        """The swept share."""
        share = self.setting.partition("@")[2]
        return float(share) if share else None


def method_of(setting: str) -> str:
    """A setting without its swept share."""
    return setting.partition("@")[0]


def rows_of(task: TaskResults) -> list[Row]:
    """A row for each setting: full, reuse, SamKV's, the controls, then the other methods."""
    if REFERENCE not in task.settings:
        raise SamKVError(f"{task.task} was not answered by full; nothing can be compared.")
    f1 = task.columns["f1"]
    loss = f1 - task.of("f1", REFERENCE)[:, None]
    right = task.of("em", REFERENCE) == 1
    em, f1s = estimates(task.columns["em"]), estimates(f1)
    losses, among = estimates(loss), estimates(loss[right])
    costs = {name: _cost(task, name) for name in ("kept", "recomputed", "ttft", "kv_bytes", "scored_bytes", "flops")}
    same = estimates(task.columns[SAME]) if SAME in task.columns else [None] * len(task.settings)
    rows = [
        Row(
            setting,
            em[i],
            f1s[i],
            losses[i],
            among[i],
            same=same[i],
            **{name: float(cost[i]) for name, cost in costs.items()},
        )
        for i, setting in enumerate(task.settings)
    ]
    return sorted(rows, key=lambda row: _rank(row.method))


def _cost(task: TaskResults, name: str) -> Array:
    """The column's mean over the questions, or the median for times; NaN without questions."""
    column = task.columns[name]
    if not task.ids:
        return np.full(len(task.settings), np.nan)
    found: Array = np.median(column, axis=0) if name == "ttft" else column.mean(0)
    return found


def _rank(method: str) -> int:
    word = method.partition(":")[0].partition(".")[0]
    order: Sequence[tuple[str, ...]] = ((REFERENCE,), ("reuse",), (OURS,), CONTROLS)
    return next((place for place, words in enumerate(order) if word in words), len(order))
