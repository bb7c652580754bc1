"""Every notebook runs from top to bottom without a network, and shows nothing that its code did not make."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest

HOME = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = ["add_a_method", "bring_your_own_model", "langchain", "llama_index", "quickstart", "see_inside"]


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_execute", HOME / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = loaded()
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def committed(name: str) -> Any:
    return execute.read(HOME / f"{name}.ipynb")


def kinds(notebook: Any) -> set[str]:
    """The kinds of output that the notebook shows."""
    shown = [output for cell in execute.code_cells(notebook) for output in cell.outputs]
    return {kind for output in shown for kind in output.get("data", {})}


def test_all_are_listed() -> None:
    assert [file.stem for file in execute.FILES] == NOTEBOOKS


@pytest.mark.slow
@every_notebook
def test_it_runs(name: str, tmp_path: Path) -> None:
    notebook = execute.execute(HOME / f"{name}.ipynb", tmp_path)
    cells = list(zip(execute.code_cells(notebook), execute.code_cells(committed(name)), strict=True))
    assert all(ran.source == kept.source for ran, kept in cells)
    assert not execute.stale(notebook) and execute.machine_paths(notebook) == []


@every_notebook
def test_what_is_shown_comes_from_the_code_beside_it(name: str) -> None:
    notebook = committed(name)
    nbformat.validate(notebook)
    assert not execute.stale(notebook), "run `make notebooks`"
    assert execute.machine_paths(notebook) == []
    assert {"image/png", "text/html"} <= kinds(notebook)
    outputs = [output for cell in execute.code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_stale_outputs_and_paths_are_noticed(name: str) -> None:
    """Negative control: code that changed, cells that were run out of order, a path that was printed."""
    notebook = committed(name)
    first = execute.code_cells(notebook)[0]
    changed, disordered, telling = deepcopy(notebook), deepcopy(notebook), deepcopy(notebook)
    execute.code_cells(changed)[0].source = first.source + "\n1"
    execute.code_cells(disordered)[0].execution_count = 2
    execute.code_cells(telling)[0].outputs = [nbformat.v4.new_output("stream", text="kept in /tmp/kv")]
    assert execute.stale(changed) and execute.stale(disordered)
    assert len(execute.machine_paths(telling)) == len(execute.machine_paths(notebook)) + 1
