"""Where questions come from: a generated task, a file of questions, or a data set of the hub.

A source is named by one word: a task (`two_hop`), a path (`sets/mine.jsonl`, `.jsonl.gz` or `.json`), or
`hub:OWNER/NAME[:CONFIG[:SPLIT]]`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.eval.forms import asked
from samkv_rag.eval.items import Item
from samkv_rag.eval.tasks import TASKS, ChunkSize
from samkv_rag.paths import expanded

GENERATED_CHUNKS = 12
HUB = "hub:"


@dataclass(frozen=True)
class Drawing:
    """How questions are drawn from a source.

    `chunks`: how many a generated question has (12), and the most that one from a file keeps (all): its supporting ones
    and the first of the others, in their order. `size`: tasks fill chunks up to it, files' passages are cut to it.
    `marked`: whether answers will be compared with gold ones, which every question then needs.
    """

    limit: int
    seed: int = 0
    chunks: int | None = None
    size: ChunkSize | None = None
    marked: bool = True


@dataclass(frozen=True)
class Source:
    """`name` heads its table in a report; `spec` is how it was requested; `digest` is of a file's bytes, else empty."""

    name: str
    spec: str
    digest: str = ""

    @classmethod
    def of(cls, spec: str) -> Source:
        """The source that `spec` names; raises `SamKVError` if it is no task, no file and no data set of the hub."""
        if spec in TASKS or spec.startswith(HUB):
            return cls(spec.removeprefix(HUB), spec)
        path = expanded(spec)
        if not path.is_file():
            raise SamKVError(f"{spec} is neither a file nor a task; the tasks are: {', '.join(TASKS)}.")
        return cls(path.name.split(".")[0], spec, hashlib.sha256(path.read_bytes()).hexdigest())

    def check(self, drawing: Drawing) -> None:
        """Find before an evaluation begins what would end it: too few chunks for a task, a bad row anywhere in a file
        (to leave it out later would make another file of it), a set without questions, or none at all."""
        if self.spec in TASKS:
            TASKS[self.spec].check(drawing.chunks or GENERATED_CHUNKS)
        elif not sum(1 for _ in self.items(Drawing(sys.maxsize if self.digest else 1, marked=drawing.marked))):
            raise SamKVError(f"{self.spec} has no questions; it must hold a JSON list of them, or one per line.")

    def items(self, drawing: Drawing) -> Iterator[Item]:
        """At most `drawing.limit` questions. Raises `SamKVError` at a row of an unknown form."""
        if self.spec in TASKS:
            chunks = drawing.chunks or GENERATED_CHUNKS
            return itertools.islice(TASKS[self.spec].items(drawing.seed, chunks, drawing.size), drawing.limit)
        rows = _hub_rows(self.spec) if self.spec.startswith(HUB) else _file_rows(expanded(self.spec))
        return self._of_rows(itertools.islice(rows, drawing.limit), drawing)

    def _of_rows(self, rows: Iterable[Mapping[str, Any]], drawing: Drawing) -> Iterator[Item]:
        for number, row in enumerate(rows):
            question = asked(row, f"{self.spec}, question {number + 1}", drawing.marked)
            chunks = question.within(drawing.chunks).cut(drawing.size).passages
            yield Item(f"{self.name}-{number}", self.name, question.text, question.answers, chunks)


def sources_of(specs: Iterable[str]) -> list[Source]:
    """The sources that are named in `specs`, each a name or several with commas between them."""
    return [Source.of(spec) for part in specs for spec in map(str.strip, part.split(",")) if spec]


def _file_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    name = path.name.lower()
    opened = gzip.open if name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            if name.removesuffix(".gz").endswith(".json"):
                yield from _rows_of(_parsed(lines.read(), str(path)), str(path))
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SamKVError(f"{path} cannot be read ({error}); it must be whole, and text in UTF-8.") from error


def _rows_of(value: Any, where: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a JSON file: a list, or SQuAD as its authors published it, without what it says is impossible."""
    if isinstance(value, list):
        return value
    articles = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(articles, list) or not all(isinstance(one, Mapping) and "paragraphs" in one for one in articles):
        raise SamKVError(f"{where} is neither a list of rows nor a SQuAD file; make it a list, or one row per line.")
    try:
        return [
            _of_squad(one, part["context"])
            for article in articles
            for part in article["paragraphs"]
            for one in part["qas"]
            if not one.get("is_impossible")
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise SamKVError(f"{where} is no whole SQuAD file ({error!r}); each question needs its answers.") from error


def _of_squad(one: Mapping[str, Any], context: Any) -> Mapping[str, Any]:
    texts = [answer["text"] for answer in one["answers"]]
    return {"question": one["question"], "context": context, "answers": {"text": texts}}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SamKVError(f"{where} is not JSON ({error}); one JSON object per line is expected.") from error


def _hub_rows(spec: str) -> Iterator[Mapping[str, Any]]:
    if importlib.util.find_spec("datasets") is None:
        raise SamKVError(f"{spec} needs the package datasets: pip install 'samkv-rag[eval]', or pass a local file.")
    from datasets import load_dataset

    name, config, split = (*spec.removeprefix(HUB).split(":"), "", "")[:3]
    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(name, config or None, split=split or "validation")
    except Exception as error:  # whatever the hub's client raises is about the name, the network or the split
        raise SamKVError(
            f"{spec} could not be loaded from the hub ({type(error).__name__}: {error}). Check the name, the split "
            "(hub:OWNER/NAME:CONFIG:SPLIT) and the network, or download the set and pass its file."
        ) from error
    return iter(rows)
