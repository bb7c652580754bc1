"""Pictures of an evaluation: F1 against what is kept, what is recomputed and the time to the first token."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.eval.results import REFERENCE, Results
from samkv_rag.eval.summary import CONTROLS, OURS, Row, method_of, rows_of
from samkv_rag.eval.verdicts import KEEP

# Okabe and Ito's colours, which can be told apart with any kind of colour vision; each method has its own marker, too.
_COLOURS = {
    "full": "#000000", "samkv": "#0072B2", "reuse": "#D55E00", "cacheblend": "#E69F00", "epic": "#56B4E9",
    "multi_infllm": "#009E73", "prophetkv": "#CC79A7", "infoflow": "#8C6D31",
}  # fmt: skip
_MARKERS = "osD^vP*X<>hd"
_LINES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_GREY = "#777777"

MOST_METHODS = 16
"""A picture with more lines is worse than the table."""

AXES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "kept": ("chunk tokens kept, % (who keeps all: side by side)", lambda row: 100 * row.kept),
    "recomputed": ("chunk tokens x layers recomputed, %", lambda row: 100 * row.recomputed),
    "ttft": ("time to the first token, ms (median)", lambda row: 1000 * row.ttft),
}


def can_draw() -> bool:
    """True if matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def pictured(results: Results) -> list[str]:
    """The axes that are drawn: all, or none if nothing was answered, or by too many methods to tell apart."""
    methods = {method_of(setting) for task in results.tasks if task.ids for setting in task.settings}
    return list(AXES) if 0 < len(methods) <= MOST_METHODS else []


def draw(results: Results, folder: Path) -> list[Path]:
    """Write `<name>-kept.png`, `-recomputed.png` and `-ttft.png`, a panel for each task, and return their paths. Raises
    `SamKVError` without matplotlib (`can_draw`)."""
    if not can_draw():
        raise SamKVError("Pictures need matplotlib: pip install matplotlib")
    folder.mkdir(parents=True, exist_ok=True)
    axes = pictured(results)
    panels = [(task.task, len(task.ids), rows_of(task)) for task in results.tasks if task.ids] if axes else []
    return [_figure(results.name, axis, panels, folder) for axis in axes]


def _figure(title: str, axis: str, panels: Sequence[tuple[str, int, Sequence[Row]]], folder: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(6.5, 4.2 * across), 3.3 * down + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharey=False)
    methods = list(dict.fromkeys(row.method for _, _, rows in panels for row in rows))
    looks = {method: _look(method, methods) for method in methods}
    for place, (task, count, rows) in zip(grid.flat, panels, strict=False):
        _panel(place, f"{task} (n = {count:,})", rows, axis, looks)
    for place in grid.flat[len(panels) :]:
        place.set_visible(False)
    handles = {h.get_label(): h for place in grid.flat for h in place.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
    figure.suptitle(f"{title}: F1 with 95 % intervals", fontsize=11)
    path = folder / f"{title}-{axis}.png"
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def _look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """A colour for each method's class, a marker and a line style for each variant of it; controls grey and dotted."""
    number, word = methods.index(method), _word(method)
    variant = [one for one in methods if _word(one) == word].index(method)
    return {
        "color": _COLOURS.get(word, _GREY),
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": ":" if word in CONTROLS else _LINES[variant % len(_LINES)],
        "linewidth": 2.2 if method == OURS else 1.1,
        "zorder": 4 if word == OURS else 3,
    }


def _word(method: str) -> str:
    return method.partition(":")[0].partition(".")[0]


def _points(rows: Sequence[Row], axis: str) -> dict[str, list[tuple[float, Row]]]:
    """Places and rows of every method. Against what is kept, a method that keeps everything has one row, the one that
    recomputes 15 %, and these are side by side from 100 % on instead of on top of each other."""
    x_of = AXES[axis][1]
    found: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        found.setdefault(row.method, []).append((x_of(row), row))
    if axis == "kept":
        whole = [method for method, own in found.items() if all(x == 100 for x, _ in own)]
        for place, method in enumerate(whole):
            own = [row for _, row in found[method] if row.ratio in (None, KEEP)] or [found[method][0][1]]
            found[method] = [(100 + 2.5 * place, own[0])]
    return {method: sorted(own, key=lambda point: point[0]) for method, own in found.items()}


def _panel(place: Any, title: str, rows: Sequence[Row], axis: str, looks: dict[str, dict[str, Any]]) -> None:
    label = AXES[axis][0]
    full = next(row for row in rows if row.setting == REFERENCE)
    place.axhspan(100 * full.f1.low, 100 * full.f1.high, color=_GREY, alpha=0.18, linewidth=0, zorder=1)
    place.axhline(100 * full.f1.value, color=_GREY, linewidth=1, zorder=2)
    for method, points in _points(rows, axis).items():
        xs, own = [x for x, _ in points], [row.f1 for _, row in points]
        value = [100 * f1.value for f1 in own]
        below = [max(0.0, 100 * (f1.value - f1.low)) for f1 in own]
        above = [max(0.0, 100 * (f1.high - f1.value)) for f1 in own]
        place.errorbar(
            xs, value, yerr=[below, above], label=method, markersize=5, capsize=2, elinewidth=0.8, **looks[method]
        )
    place.set_title(title, fontsize=10)
    place.set_xlabel(label, fontsize=9)
    place.set_ylabel("F1", fontsize=9)
    place.set_ylim(-3, max(30.0, *(100 * row.f1.high for row in rows)) * 1.05)
    place.grid(alpha=0.25)
    place.tick_params(labelsize=8)
