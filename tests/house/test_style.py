"""Files stay short, nothing is left to do, and no machine is named."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = {"kernels": 400}
LONGEST_ELSEWHERE = 300

# Put together here, so that this file is not a hit itself.
LEFT_OVER = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b")
MACHINE = re.compile(r"(?<![\w.])/(?:work|ro" + r"ot|home/\w+|Users/\w+)/")


def tracked(*suffixes: str) -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: the files are those that git tracks")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name.endswith(suffixes)]
    return [path for path in paths if path.is_file()]


def too_long(path: Path, root: Path) -> str | None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    name = path.relative_to(root)
    limit = LONGEST.get(name.parts[0], LONGEST_ELSEWHERE)
    return f"{name}: {lines} lines, at most {limit}" if lines > limit else None


def hits(pattern: re.Pattern[str], path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [f"{path.name}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if pattern.search(line)]


def test_files_are_short() -> None:
    assert [message for path in tracked(".py") if (message := too_long(path, ROOT))] == []


def test_nothing_is_left_to_do() -> None:
    assert [hit for path in tracked(".py", ".toml", ".sh", "Makefile") for hit in hits(LEFT_OVER, path)] == []


def test_no_path_of_a_machine_is_named() -> None:
    sources = tracked(".py", ".toml", ".md", ".txt", ".csv", ".json", ".ipynb", "Makefile", ".ci/run")
    assert [hit for path in sources for hit in hits(MACHINE, path)] == []


def test_only_what_a_cuda_graph_reads_is_copied_without_waiting() -> None:
    """All else goes through `samkv_kernels.sending`, which knows for which devices that is safe."""
    recorded = {"samkv_rag/model/recorded.py", "samkv_rag/model/steps.py"}
    sources = [path for path in tracked(".py") if path.is_relative_to(ROOT / "samkv_rag")]
    found = {str(path.relative_to(ROOT)) for path in sources if hits(re.compile("non_blocking=True"), path)}
    assert found == recorded


def test_a_bad_file_is_seen(tmp_path: Path) -> None:
    """Negative control for the three tests above."""
    path = tmp_path / "bad.py"
    path.write_text("x = 1\n" * LONGEST_ELSEWHERE + "# TO" + "DO: later\nP = '/ro" + "ot/x'\n")
    assert too_long(path, tmp_path) == f"bad.py: {LONGEST_ELSEWHERE + 2} lines, at most {LONGEST_ELSEWHERE}"
    assert len(hits(LEFT_OVER, path)) == len(hits(MACHINE, path)) == 1
