"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

out = Console(highlight=False, emoji=False)
notes = Console(stderr=True, highlight=False, emoji=False)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on stdout, whatever the width of the terminal; it is in ASCII unless stdout is in UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"
    sys.stdout.write(json.dumps(value, ensure_ascii=ascii_only, indent=2, default=str) + "\n")
    sys.stdout.flush()


def human_bytes(count: float) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.{1 if abs(count) < 100 and unit != 'B' else 0}f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Milliseconds below one second, else seconds."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def kept(share: float, packed: float) -> str:
    """How much of the passages is kept, `packed` of them in four bits, as shares of all."""
    return percent(share) + (f" ({percent(packed)} in four bits)" if packed else "")


def percent(share: float) -> str:
    """A share of one as a percentage."""
    return f"{100 * share:.1f} %"


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural unless the number is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class _TokenRate(TextColumn):
    """Tokens per second since the task began."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        """The column's text."""
        elapsed, tokens = task.elapsed or 0.0, task.fields.get("tokens", 0)
        self.text_format = f"{tokens / elapsed:,.0f} tokens/s" if elapsed and tokens else ""
        return super().render(task)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr with the chunks done, tokens per second and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TokenRate(), TimeRemainingColumn())
    with Progress(*columns, console=notes) as progress:
        yield progress
