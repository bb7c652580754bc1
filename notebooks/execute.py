"""Runs the notebooks, each in a kernel of its own, and keeps what they showed. `python -m notebooks.execute [name ...]`

A notebook's metadata holds a digest of the code that its outputs come from: `stale` tells when it has changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 600
QUIET = {
    "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found",
    "TORCHAO_FORCE_SKIP_LOADING_SO_FILES": "1",
}  # fmt: skip

_NOTICE = re.compile(r"^(Skipping import of cpp extensions|W\d{4} .*torch/utils/_pytree\.py).*\n?", re.MULTILINE)
"""What torchao and torch log about themselves when transformers imports them."""
_PATH = re.compile(r"(?<![\w.])/(?:root|home|Users|tmp|private|var|opt|work|mnt)/|site-packages|[A-Z]:\\\\")


def read(file: Path) -> NotebookNode:
    """The notebook in `file`."""
    return nbformat.read(file, as_version=4)


def execute(file: Path, folder: Path) -> NotebookNode:
    """The notebook with fresh outputs, run offline in `folder`; raises `CellExecutionError` when a cell fails."""
    notebook = read(file)
    client = NotebookClient(
        notebook, timeout=SECONDS, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, **QUIET})
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not is_notice(output)]
    notebook.metadata = {**read(file).metadata, "samkv": {"code": digest(notebook)}}
    return notebook


def is_notice(output: NotebookNode) -> bool:
    """Whether this is nothing but what libraries log about themselves."""
    return bool(output.get("name") == "stderr" and not _NOTICE.sub("", output.text).strip())


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """Of all code, cell by cell."""
    sources = json.dumps([cell.source for cell in code_cells(notebook)])
    return hashlib.blake2b(sources.encode(), digest_size=16).hexdigest()


def stale(notebook: NotebookNode) -> bool:
    """Whether the outputs come from other code, or not from one run from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return notebook.metadata.get("samkv", {}).get("code") != digest(notebook) or counts != list(
        range(1, len(counts) + 1)
    )


def machine_paths(notebook: NotebookNode) -> list[str]:
    """Texts among the outputs that name a place on the machine they were made on."""
    return [text for text in _shown(notebook) if _PATH.search(text)]


def _shown(notebook: NotebookNode) -> Iterator[str]:
    """All text of the outputs; pictures are left out."""
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        yield output.get("text", "")
        yield from output.get("traceback", [])
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def main(names: list[str]) -> None:
    for file in FILES:
        if names and file.stem not in names:
            continue
        print("running", file.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(file, Path(folder))
        if found := machine_paths(notebook):
            raise SystemExit(f"{file.name} shows a path of this machine; change the cell: {found[0][:200]}")
        nbformat.write(notebook, file)


if __name__ == "__main__":
    main(sys.argv[1:])
