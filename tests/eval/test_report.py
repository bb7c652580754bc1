"""Reports from records made here: rows, verdicts, the packed form, and the committed page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samkv_rag.cli import report as command
from samkv_rag.errors import SamKVError
from samkv_rag.eval import markdown
from samkv_rag.eval.plots import MOST_METHODS, draw, pictured
from samkv_rag.eval.records import RECORDS
from samkv_rag.eval.results import PACKED, TaskResults, collected, pack, read_results
from samkv_rag.eval.runfile import open_run
from samkv_rag.eval.statistics import Estimate
from samkv_rag.eval.summary import CONTROLS, Row, rows_of
from samkv_rag.eval.verdicts import JUDGED, verdict, verdicts

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results" / "eval"
PAGE = ROOT / "docs" / "results.md"
SETTINGS = ("full", "cacheblend@0.15", "no_context", "samkv@0.15", "samkv@0.5", "reuse", "random@0.15")
REPORT = {
    "kept_ratio": 0.15, "recomputed_layers_ratio": 0.15, "ttft_seconds": 0.05, "kv_bytes_resident": 2048,
    "scored_bytes": 0, "flops": 1000, "prompt_tokens": 700, "prompt_digest": "d",
}  # fmt: skip


def record(number: int, setting: str, f1: float, task: str = "two_hop", **report: Any) -> dict[str, Any]:
    return {
        "id": f"{task}-{number}", "task": task, "setting": setting, "em": float(f1 == 1), "f1": f1,
        "report": REPORT | report,
    }  # fmt: skip


def answered(task: str = "two_hop", count: int = 40, **right: float) -> list[dict[str, Any]]:
    """Records in which each setting (by method) is right on the first questions, up to its share: nested, so paired."""
    shares = {"full": 0.8, "samkv": 0.8, "cacheblend": 0.7, "reuse": 0.5, "random": 0.1, "no_context": 0.0} | right
    return [
        record(n, s, float(n < count * shares[s.partition("@")[0]]), task, ttft_seconds=0.01 * (n + 1))
        for n in range(count)
        for s in SETTINGS
    ]


def folder_of(place: Path, records: list[dict[str, Any]], settings: Sequence[str] = SETTINGS) -> Path:
    place.mkdir(parents=True)
    arguments = {
        "data": [["two_hop", ""]], "settings": list(settings), "limit": 40, "chunks": None, "chunk_tokens": None,
        "seed": 0, "max_new_tokens": None,
    }  # fmt: skip
    open_run(place, {"name": "bundled", "fingerprint": "0123456789abcdef"}, arguments)
    (place / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in records))
    return place


def results_of(records: list[dict[str, Any]]) -> TaskResults:
    return collected(records, SETTINGS)[0]


def test_rows_are_the_means_the_paired_differences_and_the_costs() -> None:
    rows = {row.setting: row for row in rows_of(results_of(answered()))}
    assert list(rows) == [
        "full", "reuse", "samkv@0.15", "samkv@0.5", "no_context", "random@0.15", "cacheblend@0.15",
    ]  # fmt: skip
    assert rows["full"].f1.value == rows["full"].em.value == 0.8
    assert rows["samkv@0.15"].minus_full == Estimate(0, 0, 0, 40)
    assert rows["reuse"].minus_full.value == pytest.approx(-0.3)
    assert rows["reuse"].where_full_is_right.value == pytest.approx(-12 / 32)
    assert rows["reuse"].where_full_is_right.n == 32
    assert rows["full"].ttft == pytest.approx(0.205) and rows["full"].kv_bytes == 2048
    assert (rows["samkv@0.5"].method, rows["samkv@0.5"].ratio, rows["reuse"].ratio) == ("samkv", 0.5, None)


def test_answers_that_are_fulls_are_counted_where_they_are_known() -> None:
    records = [
        record(n, setting, 1.0) | {"prediction": "Oslo" if setting == "full" or n % 4 else "Bergen"}
        for n in range(8) for setting in SETTINGS
    ]  # fmt: skip
    found = rows_of(results_of(records))
    assert [row.same.value for row in found if row.same] == [1.0] + [0.75] * (len(SETTINGS) - 1)
    del records[3]["prediction"]
    assert all(row.same is None for row in rows_of(results_of(records)))


def test_only_questions_answered_by_all_count() -> None:
    records = answered(count=5)[:-3]
    records.append({"id": "two_hop-9", "task": "two_hop", "setting": "skipped", "why": "long"})
    found = results_of(records)
    assert (len(found.ids), found.unfinished, found.skipped) == (4, 1, 1)


def test_without_full_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(SamKVError, match="not answered by full"):
        rows_of(collected([record(0, "reuse", 1.0)], ["reuse"])[0])


def judged(count: int = 1200, margin: float = 1.0, **right: float) -> Any:
    return verdict(rows_of(results_of(answered(count=count, **right))), margin)


VERDICTS: dict[str, tuple[dict[str, float], str, str]] = {
    "as-good": ({}, "holds", "the goal is met"),
    "better": ({"samkv": 0.9}, "holds", "the goal is met"),
    "far-below": ({"samkv": 0.6}, "missed", "the goal is missed"),
    "just-below": ({"samkv": 0.792}, "open", "not shown, nor its opposite"),
    "weak": ({"full": 0.19, "samkv": 0.19}, "cannot tell", "full prefill itself reaches 19.0 F1"),
    "easy": ({"reuse": 0.78}, "cannot tell", "loses only 2.0 points"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_follows_from_the_numbers(case: str) -> None:
    right, word, sentence = VERDICTS[case]
    found = judged(**right)
    assert found.word == word and sentence in found.text


def test_a_wider_margin_lets_more_hold() -> None:
    assert judged(samkv=0.792).word == "open" and judged(samkv=0.792, margin=5.0).word == "holds"


def test_the_verdict_names_the_best_control_and_the_number_of_questions() -> None:
    good, bad, worse = judged(), judged(count=40, random=0.75), judged(random=0.55)
    assert "The best control (reuse) reaches 50.0 F1, apart from ours. (1,200 questions.)" in good.text
    assert "The best control (random@0.15) reaches 55.0 F1, apart from ours." in worse.text
    assert "NOT apart from ours" in bad.text and "(40 questions; the goal asks for 1,000.)" in bad.text


def test_nothing_holds_without_a_control_that_lies_below() -> None:
    alike = judged(random=0.79)
    assert (alike.word, alike.difference) == ("open", "holds") and "NOT apart from ours" in alike.text
    rows = [row for row in rows_of(results_of(answered(count=1200))) if row.method not in (*CONTROLS, "reuse")]
    alone = verdict(rows, 1.0)
    assert (alone.word, alone.difference) == ("open", "holds") and "No control was run" in alone.text


def test_an_easy_task_still_says_what_selection_lost() -> None:
    found = judged(reuse=0.8, samkv=0.6)
    assert (found.word, found.difference) == ("cannot tell", "missed") and "-20.0 points" in found.text


def test_a_run_without_fifteen_percent_cannot_tell() -> None:
    rows = [row for row in rows_of(results_of(answered())) if row.setting != "samkv@0.15"]
    assert verdict(rows, 1.0).word == "cannot tell"


def test_what_holds_the_rest_and_what_drops_it_are_judged_apart() -> None:
    """Each where it was asked; where neither was, the report says so once."""
    holding, dropping = JUDGED
    records = answered(count=1200)
    records += [record(n, f"{dropping}@0.15", float(n < 700), kv_bytes_resident=512) for n in range(1200)]
    rows = rows_of(collected(records, [*SETTINGS, f"{dropping}@0.15"])[0])
    both = verdicts(rows, 1.0)
    assert [(found.method, found.word) for found in both] == [(holding, "holds"), (dropping, "missed")]
    assert "(reuse) reaches 50.0 F1" in both[0].text and "(random@0.15) reaches 10.0 F1" in both[1].text
    assert "in 100% of the bytes" in both[0].text and "in 25% of the bytes" in both[1].text
    neither = verdicts([row for row in rows if row.ratio != 0.15], 1.0)
    assert [(found.method, found.word) for found in neither] == [(holding, "cannot tell")]


def test_the_report_has_every_row_and_every_picture(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "trial", answered(count=120) + answered("needle", count=120, reuse=0.8))
    target = tmp_path / "docs" / "results.md"
    command.run([folder], target, None)
    text = target.read_text()
    for setting in ("full", "reuse", "samkv", "random", "no_context", "cacheblend"):
        assert text.count(f"\n| `{setting}` |") == (4 if setting == "samkv" else 2)
    links = re.findall(r"!\[trial\]\((.+)\)", text)
    assert [link.rpartition("-")[2] for link in links] == ["kept.png", "recomputed.png", "ttft.png"]
    for link in links:
        assert (target.parent / link).read_bytes().startswith(b"\x89PNG")
    assert "| trial | two_hop | `samkv` | holds | holds |" in text
    assert "| trial | needle | `samkv` | cannot tell | holds |" in text
    assert "| `reuse` |  | 15.0 | 15.0 | 50.0 [" in text
    assert text == command.text_of([read_results(folder)], target)


def test_two_evaluations_of_one_name_are_told_apart_by_the_user(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / place / "trial", answered()) for place in ("a", "b")]
    for out, packed in ((tmp_path / "both.md", None), (None, tmp_path / "packed")):
        with pytest.raises(SamKVError, match="called trial: rename one"):
            command.run(folders, out, packed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_report_without_a_suffix_has_its_pictures_beside_it(tmp_path: Path) -> None:
    folder, target = folder_of(tmp_path / "trial", answered()), tmp_path / "results"
    command.run([folder], target, None)
    assert "](results-pictures/trial-kept.png)" in target.read_text()
    assert (tmp_path / "results-pictures" / "trial-kept.png").exists()
    assert target.read_text() == command.text_of([read_results(folder)], target)


def test_more_methods_than_one_picture_can_tell_apart_are_left_to_the_table(tmp_path: Path) -> None:
    def of(count: int) -> Any:
        settings = ["full", *(f"samkv:followed={m}@0.15" for m in range(count - 1))]
        records = [record(n, setting, 1.0) for n in range(3) for setting in settings]
        return read_results(folder_of(tmp_path / str(count), records, settings))

    assert pictured(of(MOST_METHODS)) == ["kept", "recomputed", "ttft"]
    assert pictured(of(MOST_METHODS + 1)) == []


def test_the_compact_form_gives_the_same_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [
        record(n, s, float(rng.random()), ttft_seconds=float(rng.random())) | {"prediction": str(rng.integers(2))}
        for n in range(30) for s in SETTINGS
    ]  # fmt: skip
    folder = folder_of(tmp_path / "trial", records)
    packed = pack(folder, tmp_path / "packed")
    assert sorted(path.name for path in packed.iterdir()) == [PACKED, "run.json"]
    target = tmp_path / "results.md"
    assert command.text_of([read_results(packed)], target) == command.text_of([read_results(folder)], target)
    before = (packed / PACKED).read_bytes()
    pack(packed, tmp_path / "again")
    assert (tmp_path / "again" / "trial" / PACKED).read_bytes() == before


def test_a_folder_without_records_is_told_what_to_do(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "trial", [])
    (folder / RECORDS).unlink()
    with pytest.raises(SamKVError, match="run samkv-rag eval"):
        read_results(folder)


def test_without_matplotlib_there_are_tables_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder, target = folder_of(tmp_path / "trial", answered()), tmp_path / "results.md"
    command.run([folder], target, None)
    assert "| `samkv` |" in target.read_text() and "![" not in target.read_text()
    assert "pip install matplotlib" in capsys.readouterr().err
    with pytest.raises(SamKVError, match="pip install matplotlib"):
        draw(read_results(folder), tmp_path)


def test_a_handful_of_questions_tells_nothing() -> None:
    few, many = judged(count=20, samkv=0.8), judged(count=400, samkv=0.8)
    assert (few.word, many.word) == ("open", "holds")
    assert "too few questions" in few.text


def test_the_committed_page_is_made_from_the_committed_records() -> None:
    """`make results` writes it; a page that was edited, or records that were changed, are caught here."""
    folders = sorted(path.parent for path in COMMITTED.glob("*/run.json"))
    if not folders:
        pytest.skip("no evaluation is committed in benchmarks/results/eval")
    assert PAGE.read_text(encoding="utf-8") == command.text_of([read_results(folder) for folder in folders], PAGE)
    for link in re.findall(r"!\[.*\]\((.+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / link).is_file()


def test_a_row_says_its_method_and_its_share() -> None:
    none = Estimate(0, 0, 0, 1)
    row = Row("samkv:look=bound@0.25", none, none, none, none, 0, 0, 0, 0, 0, 0)
    assert (row.method, row.ratio) == ("samkv:look=bound", 0.25)


def test_a_file_with_a_tasks_name_is_not_told_to_be_that_task() -> None:
    for digest, known in (("", True), ("4f5e", False)):
        run = {"arguments": {"data": [["listing", digest]]}}
        found = markdown._known(SimpleNamespace(run=run), SimpleNamespace(task="listing"))  # type: ignore[arg-type]
        assert (found is not None) == known
