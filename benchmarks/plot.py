"""Draw docs/result.png, gpu.png, fidelity.png from the committed CSV rows and records. `python -m benchmarks.plot`"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend has to be chosen first)

from benchmarks.rows import RESULTS  # noqa: E402
from samkv_rag.eval.results import TaskResults, read_results  # noqa: E402
from samkv_rag.eval.summary import rows_of  # noqa: E402

PICTURE = Path(__file__).parent.parent / "docs" / "result.png"
GPU_PICTURE = PICTURE.with_name("gpu.png")
FIDELITY_PICTURE = PICTURE.with_name("fidelity.png")
COLOURS = {
    "full": "#8d99ae", "samkv": "#2a6f97", "samkv 1/3": "#61a5c2", "samkv 1/10": "#a9d6e5", "samkv half": "#468faf",
    "samkv drop": "#9d8189", "samkv 1/3 drop": "#d8a7b1", "samkv 1/10 drop": "#f4d3d9", "samkv before": "#6a4c93",
    "cacheblend": "#7f9c57", "reuse": "#e0a458",
}  # fmt: skip
SHOWN = {
    "full": "full\nprefill", "samkv": "samkv", "samkv 1/3": "samkv, a third\nrecomputed", "cacheblend": "CacheBlend",
    "reuse": "reuse",
}  # fmt: skip
"""The bars of the README's picture, and their labels."""
ANSWERED = {
    "full": "full", "samkv@0.15": "samkv", "cacheblend@0.15": "cacheblend", "reuse": "reuse",
}  # fmt: skip
NAMES = {method: method.replace(" ", "\n").replace("cacheblend", "cache-\nblend") for method in COLOURS}
"""The labels of all methods' bars."""
LEFT = {
    "random_rest@0.15": "a random 15 %", "samkv:rest=drop@0.15": "rest=drop: 15 %",
    "samkv:rest=drop,keep=0.3": "rest=drop, keep=0.3: 30 %",
    "samkv:rest=drop,settle_at=8@0.15": "rest=drop, settle_at=8: 15 % after 8 tokens",
    "samkv:rest=drop,settle_at=16@0.15": "rest=drop, settle_at=16: 15 % after 16 tokens", "reuse": "reuse: 100 %",
    "cacheblend@0.15": "cacheblend: 100 %", "samkv@0.15": "samkv: all, in 18 % of the bytes",
    "samkv:hold=0.7@0.15": "hold=0.7: in 13 %", "samkv:hold=0.5@0.15": "hold=0.5: in 10 %",
    "samkv:rest=drop,settle_at=64@0.15": "everything as it is, never settled: 100 %",
}  # fmt: skip
LEFT_OF = ("SmolLM2-135M-Instruct.Q4_1.gguf", "10", "32")
"""The model, the number of questions of a set, and the most tokens of an answer."""
REAL = {
    "2wikimultihopqa_train_migres": "2WikiMultiHopQA", "nq_open_10doc_random_distractors": "NQ-open",
    "hotpotqa_ircot_dev": "HotpotQA", "squad11_dev_8doc": "SQuAD",
}  # fmt: skip
EVALUATIONS = RESULTS / "eval"
Row = Mapping[str, str]


def latest(name: str, *keys: str, gpu: bool = False) -> dict[tuple[str, ...], Row]:
    """The last row of `results/<name>.csv` for every combination of `keys`, of those measured on a CPU or on a GPU."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["device"].startswith("NVIDIA") == gpu]
    return {tuple(row[key] for key in keys): row for row in rows}


def _name(axes: Any, names: Sequence[str]) -> None:
    """Label the bars, in a smaller font if there are many."""
    axes.set_xticks(range(len(names)), names, fontsize=8 if len(names) < 7 else 7)


def draw_ttft(
    axes: Any, rows: Mapping[tuple[str, ...], Row], tokens: str, model: str = "random",
    where: str = "to the first token\n(12 x 768 Llama, {} prompt tokens, one CPU thread)", how: str = "",
    names: Mapping[str, str] = NAMES,
) -> None:  # fmt: skip
    """Bars of the median time to the first token of the methods in `names`, with the 20 to 80 % range and the ratio to
    full prefill. `how` follows the names of all methods but that one."""
    found = _of_one_run(rows, names, model, tokens, how)
    for place, (method, row) in enumerate(found):
        median, low, high = (float(row[key]) / 1e3 for key in ("median_ms", "p20_ms", "p80_ms"))
        spread = [[median - low], [high - median]]
        axes.bar(place, median, 0.7, yerr=spread, capsize=3, color=COLOURS[method], ecolor="#444444")
        axes.annotate(f"{float(row['full_over']):.1f}x", (place, high), ha="center", va="bottom", fontsize=9)
    _name(axes, [names[method] for method, _ in found])
    axes.set_ylabel("seconds to the first token")
    axes.set_title(where.format(tokens), fontsize=10)


def _of_one_run(
    rows: Mapping[tuple[str, ...], Row], methods: Iterable[str], model: str, tokens: str, how: str = ""
) -> list[tuple[str, Row]]:  # fmt: skip
    """The methods that were timed together with full prefill: the file's other rows are of another day."""
    keys = {method: (model, tokens, method + how * (method != "full")) for method in methods}
    day = rows[keys["full"]].get("commit")
    return [(method, rows[key]) for method, key in keys.items() if key in rows and rows[key].get("commit") == day]


def draw_resident(axes: Any, rows: Mapping[tuple[str, ...], Row], tokens: str) -> None:
    """Bars of the keys and values that are held in memory while the answer is written, as a share of full prefill's."""
    found = _of_one_run(rows, SHOWN, "random", tokens)
    for place, (method, row) in enumerate(found):
        share = 100 * float(row["kv_resident"])
        axes.bar(place, share, 0.7, color=COLOURS[method])
        axes.annotate(f"{share:.0f} %", (place, share), ha="center", va="bottom", fontsize=9)
    _name(axes, [SHOWN[method] for method, _ in found])
    axes.set_ylabel("% of full prefill's keys and values")
    axes.set_title("held in memory while answering\n(the same model, float32)", fontsize=10)


def draw_answers(axes: Any, folder: Path) -> None:
    """Bars of F1 with 95 % intervals where the subject of the answer is named in an earlier chunk."""
    task = read_results(folder).tasks[0]
    _bars_of(axes, task, range(len(ANSWERED)), 0.7)
    _name(axes, [SHOWN[method] for method in ANSWERED.values()])
    axes.set_ylabel("F1")
    axes.set_title(
        f"answers whose subject an earlier chunk names\n(bundled reader, {len(task.ids)} generated questions)",
        fontsize=10,
    )


def draw_real(axes: Any, folder: Path) -> None:
    """Bars of F1 with 95 % intervals on real questions, with those of a set side by side."""
    tasks = {task.task: task for task in read_results(folder).tasks}
    for place, name in enumerate(REAL):
        _bars_of(axes, tasks[name], [place + 0.2 * number - 0.3 for number in range(len(ANSWERED))], 0.18)
    questions = sum(len(tasks[name].ids) for name in REAL)
    axes.legend([SHOWN[method].replace("\n", " ") for method in ANSWERED.values()], fontsize=8, frameon=False)
    _name(axes, list(REAL.values()))
    axes.set_ylabel("F1")
    axes.set_title(f"answers to real questions\n(bundled reader, {questions} questions)", fontsize=10)


def _bars_of(axes: Any, task: TaskResults, places: Sequence[float], width: float) -> None:
    """A bar for each method that is shown."""
    found = {row.setting: row.f1 for row in rows_of(task)}
    for place, (setting, method) in zip(places, ANSWERED.items(), strict=True):
        value, low, high = (100 * part for part in (found[setting].value, found[setting].low, found[setting].high))
        spread = [[value - low], [high - value]]
        axes.bar(place, value, width, yerr=spread, capsize=2, color=COLOURS[method], ecolor="#444444")
        axes.annotate(f"{value:.0f}", (place, high), ha="center", va="bottom", fontsize=9)


def draw_decode(axes: Any, rows: Mapping[tuple[str, ...], Row], tokens: str) -> None:
    """Bars of milliseconds per token of one answer, launched step by step and recorded."""
    names = {"together": "step by step", "recorded": "CUDA graphs"}
    caches = {"full cache": COLOURS["full"], "kept 15 %": COLOURS["samkv drop"], "all, int4": COLOURS["samkv"]}
    bars = [(cache, order) for cache in caches for order in names if ("8b", tokens, cache, "1", order) in rows]
    for place, (cache, order) in enumerate(bars):
        value = float(rows["8b", tokens, cache, "1", order]["median_ms_per_token"])
        axes.bar(place, value, 0.7, color=caches[cache])
        axes.annotate(f"{value:.0f}", (place, value), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(bars)), [f"{cache}\n{names[order]}" for cache, order in bars], fontsize=7)
    axes.set_ylabel("ms per further token")
    axes.set_title(f"decoding one answer, {tokens} prompt tokens", fontsize=10)


def save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    print(f"drawn: {path.name}")


def draw_gpu(path: Path) -> None:
    """What was measured on a GPU: the first token at three sizes, and further tokens."""
    figure, (*sizes, further) = plt.subplots(1, 4, figsize=(18, 3.9), dpi=110)
    rows = latest("ttft", "model", "tokens", "method", gpu=True)
    for axes, tokens in zip(sizes, ("5120", "16384", "65536"), strict=True):
        draw_ttft(axes, rows, tokens, "8b", "8B shape, {} prompt tokens, one H200", ", recorded")
    draw_decode(further, latest("decode", "model", "tokens", "cache", "answers", "order", gpu=True), "16384")
    save(figure, path)


def draw_fidelity(path: Path) -> None:
    """Bars of what methods lose of a public model's own answers, over four question sets, each of them a dot."""
    figure, axes = plt.subplots(figsize=(9, 3.4), dpi=110)
    found = latest("fidelity", "model", "questions", "most_tokens", "method", "source")
    rows = {key[3:]: row for key, row in found.items() if key[:3] == LEFT_OF}
    sources = sorted({source for _, source in rows})
    for place, method in enumerate(LEFT):
        losses = [float(rows[method, source]["loss"]) for source in sources]
        drops = "rest=drop" in method and "settle_at=64" not in method  # no answer is so long
        name = "samkv drop" if drops else method.split(":")[0].split("@")[0]
        axes.barh(place, sum(losses) / len(losses), 0.7, color=COLOURS.get(name, "#c9cdd4"))
        axes.plot(losses, [place] * len(losses), "o", color="#444444", markersize=3)
    axes.set_yticks(range(len(LEFT)), LEFT.values(), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("nats lost of full prefill's own answer (10 questions of each of four sets, dots; less is better)")
    axes.set_title("SmolLM2-135M-Instruct, and what is kept", fontsize=10)
    save(figure, path)


def main() -> None:
    figure, ((time, memory), (real, generated)) = plt.subplots(2, 2, figsize=(11, 7.4), dpi=110)
    rows = latest("ttft", "model", "tokens", "method")
    draw_ttft(time, rows, "4096", names=SHOWN)
    draw_resident(memory, rows, "4096")
    draw_real(real, EVALUATIONS / "real")
    draw_answers(generated, EVALUATIONS / "methods")
    save(figure, PICTURE)
    draw_gpu(GPU_PICTURE)
    draw_fidelity(FIDELITY_PICTURE)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
