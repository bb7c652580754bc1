"""Ingestions in processes of their own, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from samkv_rag.retrieval import folder, index
from tests.retrieval.fakes import FakeEngine

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def start(store: Path, docs: Path, where: str, number: int = 1) -> BaseProcess:
    """Start an ingestion that kills itself at call `number` of `where`."""
    child = _context.Process(target=_ingest, args=(store, docs, where, number))
    child.start()
    return child


def _ingest(store: Path, docs: Path, where: str, number: int) -> None:
    engine, log = FakeEngine(store / "kv"), store / f"log-{os.getpid()}"
    if where == "slowly":
        compute = engine.precompute
        engine.precompute = lambda *args, **more: (time.sleep(0.3), compute(*args, **more))[1]  # type: ignore[method-assign]
    else:
        owner: Any = {"precompute": engine, "write": index.Manifest, "release": engine.store}.get(where, os)
        setattr(owner, where, _killing(getattr(owner, where), number))
    waited: list[bool] = []
    report = folder.ingest_folder(engine, docs, store / "index", on_wait=lambda: waited.append(True))
    log.write_text(f"{len(report.added)} {len(report.unchanged)} {len(waited)}")


def _killing(original: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return call
