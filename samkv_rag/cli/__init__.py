"""The command line `samkv-rag`: `main` is its entry point.

Importing this package loads nothing but the standard library; the commands import what they need when they run.
"""

from __future__ import annotations

import io
import os
import sys

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line with the process's arguments and exit with its code.

    Loading and downloading show bars on a terminal only: if a pipe is closed at its other end, tqdm waits for ever.
    Characters that the output's encoding lacks are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from samkv_rag.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        print(f"The command line needs {error.name}: pip install 'samkv-rag[cli]'", file=sys.stderr)
        sys.exit(1)
    app(prog_name="samkv-rag")
