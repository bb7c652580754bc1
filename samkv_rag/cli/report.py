"""`samkv-rag report`: the text and the pictures of evaluations, from their records alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from samkv_rag.cli.console import notes, out
from samkv_rag.errors import SamKVError
from samkv_rag.eval.markdown import document
from samkv_rag.eval.plots import can_draw, draw, pictured
from samkv_rag.eval.results import Results, pack, read_results


def run(folders: Sequence[Path], target: Path | None, packed: Path | None) -> None:
    """Write the report of `folders` to `target` (default: report.md in the first), pictures in a folder beside it.

    With `packed` only the compact copies are written.
    """
    _check_names(folders)
    if packed is not None:
        for folder in folders:
            notes.print(f"Packed: {pack(folder, packed)}", markup=False, soft_wrap=True)
        return
    results = [read_results(folder) for folder in folders]
    target = target or folders[0] / "report.md"
    drawn = can_draw()
    links = {
        one.name: [_link(target, path) for path in draw(one, pictures_of(target))] if drawn else [] for one in results
    }
    text = document(results, command_of(target), links)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    out.print(text.partition("## Verdicts\n")[2].partition("\n## ")[0].strip(), markup=False, soft_wrap=True)
    pictures = f" and the pictures in {pictures_of(target)}" if drawn else "; for pictures: pip install matplotlib"
    notes.print(f"Written: {target}{pictures}", markup=False, soft_wrap=True)


def _check_names(folders: Sequence[Path]) -> None:
    """Raise `SamKVError` if two folders share a name: evaluations, their pictures and compact copies go by it."""
    names = [folder.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise SamKVError(f"Two of the folders are called {name}: rename one, or report them apart.")


def pictures_of(target: Path) -> Path:
    """`docs/results.md` has its pictures in `docs/results/`, `results` in `results-pictures/`."""
    return target.with_suffix("") if target.suffix else target.with_name(f"{target.name}-pictures")


def command_of(target: Path) -> str:
    """The command as the text gives it: without this machine's folders."""
    return f"samkv-rag report FOLDER... --out {target.name}"


def _link(target: Path, picture: Path) -> str:
    return Path(os.path.relpath(picture, target.parent)).as_posix()


def text_of(results: Sequence[Results], target: Path) -> str:
    """The text that `run` writes, without drawing: the pictures' names follow from the evaluations'."""
    folder = pictures_of(target).name
    links = {one.name: [f"{folder}/{one.name}-{axis}.png" for axis in pictured(one)] for one in results}
    return document(results, command_of(target), links)
