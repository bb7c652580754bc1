"""The runner: the same prompt for all, each answer once, resumed after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from samkv_rag import SamKVEngine
from samkv_rag.cli.app import app
from samkv_rag.errors import SamKVError
from samkv_rag.eval.items import Item
from samkv_rag.eval.records import RECORDS, Records, read_records
from samkv_rag.eval.runner import Evaluation, evaluate
from samkv_rag.eval.settings import settings
from samkv_rag.eval.sources import Drawing, Source
from tests.models import tiny_engine

ROOT = Path(__file__).parents[2]
METHODS = "full,samkv,cacheblend,no_context"


def questions(folder: Path, count: int = 3, words: int = 4) -> Source:
    rows = [
        {
            "question": f"Where is mill {n}?",
            "answers": ["Orrin", f"in Orrin {n}"],
            "passages": [{"text": f"Mill {n} is in Orrin. " * words}, {"text": f"Inn {n} is old. " * words}],
        }
        for n in range(count)
    ]
    path = folder / "mills.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source.of(str(path))


def run(
    folder: Path, source: Source, engine: SamKVEngine, limit: int = 9, methods: str = METHODS
) -> list[dict[str, Any]]:
    wanted = Evaluation([source], settings(methods, [0.15, 0.5]), Drawing(limit), max_new_tokens=3)
    heard: list[tuple[str, int]] = []
    evaluate(engine, wanted, Records(folder), lambda *done: heard.append(done))
    found = read_records(folder / RECORDS)
    assert heard == [("mills", len(wanted.settings))] * len({record["id"] for record in found})
    return found


def test_every_question_is_answered_under_every_setting_and_marked(tmp_path: Path) -> None:
    found = run(tmp_path / "out", questions(tmp_path), tiny_engine())
    labels = ["full", "samkv@0.15", "samkv@0.5", "cacheblend@0.15", "cacheblend@0.5", "no_context"]
    assert [(r["id"], r["setting"]) for r in found] == [(f"mills-{n}", label) for n in range(3) for label in labels]
    for record in found:
        assert record["answers"] == ["Orrin", f"in Orrin {record['id'][-1]}"]
        assert record["report"]["chunk_tokens"] > 0 and record["new_tokens"] <= 3
    for n in range(3):
        assert len({r["report"]["prompt_digest"] for r in found if r["id"] == f"mills-{n}"}) == 1


def test_nothing_stays_in_the_store(tmp_path: Path) -> None:
    engine = tiny_engine()
    run(tmp_path / "out", questions(tmp_path), engine)
    assert len(engine.store) == 0


def test_what_is_there_is_not_answered_again(tmp_path: Path) -> None:
    source, engine = questions(tmp_path), tiny_engine()
    first = run(tmp_path / "out", source, engine, limit=1)
    path = tmp_path / "out" / RECORDS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    second = run(tmp_path / "out", source, engine)
    assert second[:2] == first[:2], "kept to the letter, with the times of then"
    whole = run(tmp_path / "other", source, engine)

    def what(records: list[dict[str, Any]]) -> list[Any]:
        return [(r["id"], r["setting"], r["prediction"], r["report"]["kept_tokens"]) for r in records]

    assert what(second) == what(whole)


@dataclasses.dataclass(frozen=True)
class Marked:
    """Answers with a fixed text, for the runner to mark."""

    engine: SamKVEngine
    text: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(self.engine.answer(*args, **kwargs), text=self.text)


@pytest.mark.parametrize(
    ("text", "em", "f1"),
    [("in orrin 0!", 1, 1), ("Orrin\nQuestion: more", 1, 1), ("the old Orrin", 0, 2 / 3), ("Bergen", 0, 0)],
)
def test_an_answer_is_marked_on_its_first_line_against_the_best_gold(
    tmp_path: Path, text: str, em: float, f1: float
) -> None:
    (record,) = run(tmp_path / "out", questions(tmp_path, 1), Marked(tiny_engine(), text), methods="full")  # type: ignore[arg-type]
    assert (record["em"], record["f1"]) == (em, pytest.approx(f1))


class OtherPrompt(Marked):
    """Negative control: one method gets another prompt."""

    def answer(self, question: str, chunks: Any, *, method: Any, **kwargs: Any) -> Any:
        changed = question + " Now?" if method.name == "cacheblend" else question
        return self.engine.answer(changed, chunks, method=method, **kwargs)


def test_a_method_with_another_prompt_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SamKVError, match="cacheblend@0.15 did not get the prompt"):
        run(tmp_path / "out", questions(tmp_path), OtherPrompt(tiny_engine(), ""))  # type: ignore[arg-type]


def test_a_changed_question_is_not_mixed_with_its_old_answers(tmp_path: Path) -> None:
    engine = tiny_engine()
    run(tmp_path / "out", questions(tmp_path), engine, limit=1, methods="full")
    with pytest.raises(SamKVError, match="no longer the prompt"):
        run(tmp_path / "out", questions(tmp_path, words=5), engine, methods="full,samkv")


def test_a_question_too_long_for_the_model_is_counted_and_left_out(tmp_path: Path) -> None:
    source, engine = questions(tmp_path, 2, words=40), tiny_engine()
    wanted = Evaluation([source], settings("full", []), Drawing(9))
    for _ in range(2):  # the second time it is not tried again
        evaluate(engine, wanted, Records(tmp_path / "out"), lambda *_: None)
    found = read_records(tmp_path / "out" / RECORDS)
    assert [r["setting"] for r in found] == ["skipped", "skipped"] and "positions" in found[0]["why"]


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SamKVError, match="called mills"):
        Evaluation([questions(tmp_path)] * 2, [], Drawing(1))


def test_an_item_is_what_the_file_says(tmp_path: Path) -> None:
    item = next(questions(tmp_path).items(Drawing(1)))
    assert item == Item("mills-0", "mills", "Where is mill 0?", ("Orrin", "in Orrin 0"), item.chunks)


def command(out: Path, source: Path) -> list[str]:
    options = ["--methods", "samkv,reuse", "--keep", "0.15,0.5", "--limit", "12", "--max-new-tokens", "4"]
    return ["eval", "--data", str(source), "--out", str(out), *options]


def test_a_killed_evaluation_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """A real `kill -9` in the middle, a torn line added for good measure, and the same command again."""
    questions(tmp_path, 12, words=8)
    killed, whole = (command(tmp_path / name, tmp_path / "mills.jsonl") for name in ("killed", "whole"))
    path = tmp_path / "killed" / RECORDS
    code = "from samkv_rag.cli import main; main()"
    child = subprocess.Popen([sys.executable, "-c", code, *killed], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while child.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 6):
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.wait()
    at_the_kill = path.read_bytes()
    assert child.returncode == -signal.SIGKILL and 6 <= at_the_kill.count(b"\n") < 48
    with path.open("ab") as file:
        file.write(b'{"id": "mills-')
    for arguments in (killed, whole):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert path.read_bytes().startswith(at_the_kill[: at_the_kill.rfind(b"\n") + 1])

    def what(name: str) -> list[Any]:
        records = read_records(tmp_path / name / RECORDS)
        return [(r["id"], r["setting"], r["prediction"], r["report"]["prompt_digest"]) for r in records]

    assert what("killed") == what("whole") and len(what("whole")) == 12 * 4
    other = CliRunner().invoke(app, [*killed, "--seed", "5"])
    assert other.exit_code == 1 and "holds an evaluation with other settings" in " ".join(other.output.split())
