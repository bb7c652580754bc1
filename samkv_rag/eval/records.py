"""What was answered, one JSON line per answer, appended for good: a killed evaluation resumes where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError

RECORDS = "records.jsonl"
SKIPPED = "skipped"
"""Takes the place of the setting in the record of a question that could not be asked."""

Record = Mapping[str, Any]


class Records:
    """The records of a folder, created if missing. A last line cut off by a kill is dropped from the file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RECORDS
        self.done: set[tuple[str, str]] = set()
        self.digests: dict[str, str] = {}
        self.path.touch()
        _drop_torn_line(self.path)
        for record in read_records(self.path):
            self._note(record)

    def append(self, records: Sequence[Record]) -> None:
        """Write and flush to disk; what was appended before is never touched."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        for record in records:
            self._note(record)

    def _note(self, record: Record) -> None:
        self.done.add((record["id"], record["setting"]))
        if "report" in record:
            self.digests[record["id"]] = record["report"]["prompt_digest"]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file; raises `SamKVError` naming a damaged line. A last line that was cut off is left out."""
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            _ = {record["id"], record["task"], record["setting"]}  # texts: they name the answer
            found.append(record)
        except (ValueError, TypeError, KeyError) as error:
            raise SamKVError(
                f"{path}, line {number} is damaged; delete that line, and the same command answers it again."
            ) from error
    return found


def _drop_torn_line(path: Path) -> None:
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(whole.rfind(b"\n") + 1)
