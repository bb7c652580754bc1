"""The README's first Python snippet runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def snippets(runner: str = "tests/test_readme.py") -> list[str]:
    """Python blocks marked as running in the file `runner`."""
    return re.findall(rf"<!-- runs in {runner} -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_has_a_snippet_to_run() -> None:
    assert snippets()


@pytest.mark.parametrize("code", snippets())
def test_readme_snippets_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "kept" in printed
    assert printed.splitlines()[0].strip()
