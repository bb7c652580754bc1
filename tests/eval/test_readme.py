"""The README's two commands, run as written on the README's own question."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samkv_rag.cli.app import app
from samkv_rag.eval.results import read_results

SECTION = (
    (Path(__file__).parents[2] / "README.md").read_text().split("## Measure it on your own data")[1].split("\n## ")[0]
)


def test_the_commands_of_the_readme_measure_its_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (row,) = re.findall(r"```json\n(.*?)```", SECTION, re.DOTALL)
    (commands,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    Path("questions.jsonl").write_text(row * 2)
    for command in commands.strip().splitlines():
        name, *arguments = shlex.split(command)
        result = CliRunner().invoke(app, arguments)
        assert name == "samkv-rag" and result.exit_code == 0, result.output
    (task,) = read_results(tmp_path / "runs" / "mine").tasks
    assert task.task == "questions" and len(task.ids) == 2
    assert task.settings == (
        "full", "reuse", "samkv@0.15", "samkv@0.5", "cacheblend@0.15", "cacheblend@0.5", "random@0.15", "random@0.5",
        "no_context",
    )  # fmt: skip
    text = Path("results.md").read_text()
    assert "### questions" in text and "2 questions, on average" in text
    for link in re.findall(r"!\[.*?\]\((.+?)\)", text):
        assert Path(link).is_file()


def test_options_that_cannot_be_meant_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {
        ("--data", "nowhere.jsonl"): "neither a file nor a task",
        ("--data", "one_hop", "--methods", "sam"): "There is no method 'sam'",
        ("--data", "one_hop", "--keep", "a"): "--keep takes shares",
        ("--data", "one_hop", "--keep", "2"): "between 0 and 1",
    }
    for arguments, sentence in cases.items():
        result = CliRunner().invoke(app, ["eval", "--out", "runs", *arguments])
        assert result.exit_code == 1 and sentence in " ".join(result.output.split()), result.output
    assert not Path("runs").exists()
