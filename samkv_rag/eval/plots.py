"""Pictures of an evaluation: F1 against what is kept, what is recomputed and the time to the first token."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.eval.results import REFERENCE, Results
from samkv_rag.eval.summary import CONTROLS, OURS, Row, rows_of

# Okabe and Ito's colours, told apart by people with any kind of colour vision; a marker of its own for each method too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_MARKERS = "osD^vP*X<>hd"
_GREY = "#777777"

AXES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "kept": ("chunk tokens kept, %", lambda row: 100 * row.kept),
    "recomputed": ("chunk tokens x layers recomputed, %", lambda row: 100 * row.recomputed),
    "ttft": ("time to the first token, ms (median)", lambda row: 1000 * row.ttft),
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write `<name>-kept.png`, `-recomputed.png` and `-ttft.png`: a panel for each task. Returns their paths."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SamKVError("Pictures need matplotlib: pip install 'samkv-rag[eval]'")
    folder.mkdir(parents=True, exist_ok=True)
    panels = [(task.task, len(task.ids), rows_of(task)) for task in results.tasks if task.ids]
    return [_figure(results.name, name, panels, folder) for name in AXES] if panels else []


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
    """Controls in grey and dashed, SamKV thick, everything else in a colour and a marker of its own."""
    number = methods.index(method)
    word = method.partition(":")[0].partition(".")[0]
    control = word in CONTROLS
    return {
        "color": _GREY if control else _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": ":" if control else "-",
        "linewidth": 2.2 if method == OURS else 1.1,
        "zorder": 4 if word == OURS else 3,
    }


def _panel(place: Any, title: str, rows: Sequence[Row], axis: str, looks: dict[str, dict[str, Any]]) -> None:
    label, x_of = AXES[axis]
    full = next(row for row in rows if row.setting == REFERENCE)
    place.axhspan(100 * full.f1.low, 100 * full.f1.high, color=_GREY, alpha=0.18, linewidth=0, zorder=1)
    place.axhline(100 * full.f1.value, color=_GREY, linewidth=1, zorder=2)
    for method in dict.fromkeys(row.method for row in rows):
        own = sorted((row for row in rows if row.method == method), key=x_of)
        value = [100 * row.f1.value for row in own]
        below = [max(0.0, 100 * (row.f1.value - row.f1.low)) for row in own]
        above = [max(0.0, 100 * (row.f1.high - row.f1.value)) for row in own]
        place.errorbar(
            list(map(x_of, own)), value, yerr=[below, above], label=method, markersize=5, capsize=2, elinewidth=0.8,
            **looks[method],
        )  # fmt: skip
    place.set_title(title, fontsize=10)
    place.set_xlabel(label, fontsize=9)
    place.set_ylabel("F1", fontsize=9)
    place.set_ylim(-3, max(30.0, *(100 * row.f1.high for row in rows)) * 1.05)
    place.grid(alpha=0.25)
    place.tick_params(labelsize=8)
