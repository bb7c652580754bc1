"""What the numbers of a task say about the claim, in sentences that are computed, not written.

The claim: choosing 15 % of the chunk tokens loses no accuracy, with the others held in four bits (`samkv`), or even
without them (`samkv:rest=drop`, the paper's). It holds on a task if the lower end of the paired difference of F1 to
full prefill is above the margin that the task allows, and the controls are clearly below: those at the same share,
and, for a method that keeps everything, reuse, which does so, too. Where full itself is weak, or where reuse loses
nothing, a task cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samkv_rag.eval.results import REFERENCE
from samkv_rag.eval.summary import CONTROLS, OURS, Row

KEEP = 0.15
JUDGED = (OURS, f"{OURS}:rest=drop")
WEAK = 0.20
NEEDED_LOSS = 0.05
ENOUGH = 1000
FEWEST = 100
"""With fewer questions nothing is concluded: the interval of ten identical answers has no width."""


@dataclass(frozen=True)
class Verdict:
    """What is concluded about `method`: `word` is "holds", "open", "missed" or "cannot tell"; `difference` one of the
    first three, by the paired difference alone ("none" without one); `text` states it with its numbers."""

    method: str
    word: str
    difference: str
    text: str


def verdicts(rows: Sequence[Row], margin: float) -> list[Verdict]:
    """The verdict on every judged method that was run, for a task whose goal allows a loss of `margin` points of F1."""
    asked = {row.setting for row in rows}
    found = [method for method in JUDGED if _setting(method) in asked]
    return [verdict(rows, margin, method) for method in found or JUDGED[:1]]


def verdict(rows: Sequence[Row], margin: float, method: str = OURS) -> Verdict:
    """The verdict on one method."""
    by_name = {row.setting: row for row in rows}
    full, ours, reuse = (by_name.get(name) for name in (REFERENCE, _setting(method), "reuse"))
    assert full is not None  # there are no rows without it
    beside = [reuse] if method == OURS else []
    controls = [by_name.get(_setting(name), by_name.get(name)) for name in CONTROLS] + beside
    best = max((row for row in controls if row is not None), key=lambda row: row.f1.value, default=None)
    return Verdict(method, *_judged(full, ours, best, reuse, margin))


def _setting(method: str) -> str:
    return f"{method}@{KEEP:g}"


def _judged(
    full: Row, ours: Row | None, control: Row | None, reuse: Row | None, margin: float
) -> tuple[str, str, str]:  # fmt: skip
    """The word, the word by the difference alone, and the text; `control` is the best one."""
    if full.f1.n == 0:
        return "cannot tell", "none", "No question was answered by all methods."
    if full.f1.value < WEAK:
        return (
            "cannot tell",
            "none" if ours is None else _goal(ours, full, margin)[0],
            f"This task cannot tell: full prefill itself reaches {_points(full.f1.value)} F1 with this model, below "
            f"{_points(WEAK)}.",
        )
    if ours is None:
        return "cannot tell", "none", f"This run has no {_setting(OURS)}: ask for {OURS} with --keep {KEEP:g}."
    word, text = _goal(ours, full, margin)
    lost = None if reuse is None else -reuse.minus_full.value
    if lost is not None and lost < NEEDED_LOSS:
        return (
            "cannot tell",
            word,
            f"This task cannot tell whether chunks must see each other: reuse, where they do not, loses only "
            f"{_points(lost)} points. What it shows is selection: {text} {_beside(control, ours)}{_few(ours)}",
        )
    without = "" if lost is None else f"Reuse loses {_points(lost)} points. "
    claimed = "open" if word == "holds" and not _apart(control, ours) else word
    return claimed, word, f"{text[0].upper()}{text[1:]} {without}{_beside(control, ours)}{_few(ours)}"


def _goal(ours: Row, full: Row, margin: float) -> tuple[str, str]:
    gap = ours.minus_full
    found = (
        f"at {ours.kept:.0%} kept, in {ours.kv_bytes / full.kv_bytes:.0%} of the bytes, the paired difference of F1 to "
        f"full is {_signed(gap.value)} points [{_signed(gap.low)}, {_signed(gap.high)}]"
    )
    if ours.f1.n < FEWEST:
        return "open", f"{found}: too few questions to tell."
    if gap.low >= -margin / 100:
        return "holds", f"{found}, not below -{margin:g}: the goal is met."
    if gap.high < -margin / 100:
        return "missed", f"{found}, below -{margin:g}: the goal is missed."
    return "open", f"{found}, which reaches below -{margin:g}: the goal is not shown, nor its opposite."


def _apart(control: Row | None, ours: Row) -> bool:
    """True if the control's interval is below ours."""
    return control is not None and control.f1.high < ours.f1.low


def _beside(control: Row | None, ours: Row) -> str:
    """The best control, and whether its interval and ours are apart."""
    if control is None:
        return "No control was run, without which nothing is claimed. "
    apart = "apart from" if _apart(control, ours) else "NOT apart from"
    return f"The best control ({control.setting}) reaches {_points(control.f1.value)} F1, {apart} ours. "


def _few(ours: Row) -> str:
    n = ours.f1.n
    return f"({n:,} questions.)" if n >= ENOUGH else f"({n:,} questions; the goal asks for {ENOUGH:,}.)"


def _points(share: float) -> str:
    return f"{100 * share + 0:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share + 0:+.1f}"
