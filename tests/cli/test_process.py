"""What only a real process shows: what is imported, missing packages, ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAIN = "from samkv_rag.cli import main; main()"


def python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, "-c", code, *args], {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)


def test_help_imports_neither_torch_nor_llama_index() -> None:
    heavy = "('torch', 'transformers', 'llama_index', 'faiss', 'sklearn', 'numpy')"
    code = f"import sys, atexit\natexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))\n{MAIN}"
    done = python(code, "--help")
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("hidden", "code"),
    [
        ("typer", MAIN),
        ("rich", MAIN),
        ("faiss", "import samkv_rag.retrieval"),
        ("sklearn", "import samkv_rag.retrieval"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_command(hidden: str, code: str) -> None:
    hide = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == {hidden!r}:
            raise ModuleNotFoundError(f'No module named {{name}}', name={hidden!r})
sys.meta_path.insert(0, Hide())
"""
    done = python(hide + code, "--help")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and hidden in last and "pip install 'samkv-rag[cli]'" in last, done.stderr


# A suite that a shell runs in the background ignores ctrl-C, and so would its children: the child handles it again.
CHILD = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import samkv_rag.cli.ingest as ingest
from tests.retrieval.fakes import FakeEngine
def slow(self, texts, progress):
    print('computing', flush=True)
    time.sleep(60)
FakeEngine.precompute = slow
ingest.open_engine = lambda model, store, kv_dtype: FakeEngine(store / 'fake')
from samkv_rag.cli import main
main()
"""


def test_ctrl_c_stops_with_130_and_leaves_no_index(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Alma Works is based in Tyrsa.")
    args = ["ingest", str(tmp_path), "--store", str(tmp_path / "store")]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *args],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert child.stdout is not None and child.stdout.readline() == "computing\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and "Stopped." in errors and "Traceback" not in errors
    assert not (tmp_path / "store" / "index" / "CURRENT").exists()


def test_bars_are_drawn_on_a_terminal_only(tmp_path: Path) -> None:
    """In `samkv-rag ask ... 2>&1 | head -1` a bar of tqdm that cannot be drawn would keep its lock for ever."""
    (tmp_path / "a.txt").write_text("Alma Works is based in Tyrsa.")
    store = ["--store", str(tmp_path / "store")]
    assert python(MAIN, "ingest", str(tmp_path), *store).returncode == 0
    done = python(MAIN, "ask", "Where is Alma Works based?", *store)
    assert done.returncode == 0 and "Tyrsa" in done.stdout
    assert "Loading weights" not in done.stderr


SHOW = """
import sys, types
from samkv_rag.cli import main
app = types.ModuleType('samkv_rag.cli.app')
def show(prog_name):
    from samkv_rag.cli.console import notes, out, print_json
    out.print('caf\u00e9')
    notes.print('th\u00e9')
    print_json({'text': 'caf\u00e9'})
app.app = show
sys.modules['samkv_rag.cli.app'] = app
main()
"""


@pytest.mark.parametrize(("encoding", "word"), [("ascii", "caf\\xe9"), ("utf-8", "caf\u00e9")])
def test_characters_that_the_output_lacks_are_written_as_escapes(encoding: str, word: str) -> None:
    done = python(SHOW, PYTHONIOENCODING=encoding)
    shown, _, as_json = done.stdout.partition("\n")
    assert done.returncode == 0 and shown == word, done.stderr
    assert json.loads(as_json) == {"text": "caf\u00e9"}
