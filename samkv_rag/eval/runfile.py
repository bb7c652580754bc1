"""`run.json`: what an evaluation was run with, so that it is not continued with anything else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.eval.records import RECORDS

RUN = "run.json"
_MAY_CHANGE = ("limit",)


def environment() -> dict[str, Any]:
    """Versions, device and threads: what else the results may depend on."""
    import torch

    from samkv_rag import __version__

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "samkv_rag": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "device": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str:
    """The short commit of the sources, followed by a plus sign if they were edited; empty outside a checkout."""
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    if not (here / ".git").exists():
        return ""
    edited = git("status", "--porcelain", "-uno", "--", "samkv_rag", "kernels")
    return git("rev-parse", "--short", "HEAD") + ("+" if edited else "")


def open_run(folder: Path, model: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Write `run.json`, or check that it says the same; raises `SamKVError` that names what differs.

    More questions (`limit`) may be requested later. Another environment may continue; each one is listed.
    """
    path, answered = folder / RUN, _holds_answers(folder)
    wanted: dict[str, Any] = {"model": dict(model), "arguments": dict(arguments)}
    told = {**wanted, "environments": []}
    if path.exists():
        found = read_run(folder)  # of an evaluation, or this raises
        told = found if answered else told
    elif answered:
        raise SamKVError(f"{folder} holds answers, but no {RUN} that says of what; choose another folder for --out.")
    differing = [
        _difference(name, told[part].get(name), wanted[part].get(name))
        for part in ("model", "arguments")
        for name in told[part] | wanted[part]
        if name not in _MAY_CHANGE and wanted[part].get(name) != told[part].get(name)
    ]
    if differing:
        raise SamKVError(
            f"{folder} holds an evaluation with other settings: {'; '.join(differing)}. Use those again to go on with "
            "it, or another folder for --out."
        )
    now = environment()
    told["arguments"] = dict(arguments)
    told["environments"] += [] if now in told["environments"] else [now]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _holds_answers(folder: Path) -> bool:
    records = folder / RECORDS
    return records.exists() and records.stat().st_size > 0


def _difference(name: str, old: Any, new: Any) -> str:
    """What of a setting is another: of lists, only what one of the two has."""
    if isinstance(old, list) and isinstance(new, list):
        gone, added = [one for one in old if one not in new], [one for one in new if one not in old]
        if name == "data" and gone and [one[0] for one in gone] == [one[0] for one in added]:
            return f"data (changed since: {', '.join(one[0] for one in gone)})"
        parts = [
            f"{', '.join(map(_shown, some))} only {where}" for some, where in ((gone, "there"), (added, "now")) if some
        ]
        return f"{name} ({'; '.join(parts) or 'in another order'})"
    return f"{name} ({old!r} there, {new!r} now)"


def _shown(value: Any) -> str:
    return str(value[0] if isinstance(value, list) else value)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a folder's `run.json`; raises `SamKVError` if there is none, or another."""
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
        _ = found["model"], found["arguments"], found["environments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SamKVError(f"{folder} holds no readable {RUN}: it is not the --out of samkv-rag eval.") from error
    return found


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: a kill leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
