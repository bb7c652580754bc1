"""`store.json`: which store a folder is, and with which version of the format it was made."""

from __future__ import annotations

import json
import uuid
import warnings
import zlib
from pathlib import Path
from typing import Any

from samkv_rag.store.errors import StoreError, StoreReadOnly
from samkv_rag.store.files import PendingFile, folder_lock, make_folder, sync_folder
from samkv_rag.store.reading import only_read

NAME = "store.json"
FORMAT = "samkv-store"
VERSION = 1


def identify(folder: Path) -> str:
    """The store id of `folder`, which becomes a store if it is none yet; StoreError for a store of a newer version."""
    found = _given(folder) if only_read(folder) else _made(folder)
    if found["version"] > VERSION:
        raise StoreError(
            f"The store {folder} was made by a newer version of samkv-rag (format {found['version']}, this one knows "
            f"{VERSION}): upgrade samkv-rag, or use another folder."
        )
    return str(found["store_id"])


def _given(folder: Path) -> dict[str, Any]:
    """The facts of a store that may only be read; one without them has another id in every process."""
    if not (folder / "entries").is_dir():
        raise StoreReadOnly(folder)
    return _read(folder / NAME) or _new()


def _new() -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "store_id": str(uuid.uuid4())}


def _made(folder: Path) -> dict[str, Any]:
    make_folder(folder)
    with folder_lock(folder):
        found = _read(folder / NAME)
        if found is None:
            found = _new()
            _write(folder, found)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """The facts in the file, None if there is no file or it is damaged."""
    try:
        facts = json.loads(path.read_bytes())
        check = facts.pop("check")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        facts, check = {}, None
    if check != _check(facts) or facts.get("format") != FORMAT or not isinstance(facts.get("version"), int):
        # The id only tells stores apart, so a new one is the smaller loss.
        warnings.warn(f"{path} was damaged; the store gets a new id.", RuntimeWarning, stacklevel=3)
        return None
    return dict(facts)


def _write(folder: Path, facts: dict[str, Any]) -> None:
    with PendingFile(folder) as file:
        file.write(json.dumps({**facts, "check": _check(facts)}).encode())
        file.sync()
        file.publish(folder / NAME)
    sync_folder(folder)


def _check(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
