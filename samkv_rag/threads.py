"""Work in threads, for tasks that may be cancelled meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from samkv_rag.errors import SamKVError
from samkv_rag.ingest import Progress

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *args: Any, stop: threading.Event | None = None) -> T:
    """What `work(*args)` returns, called in a thread. A cancelled task sets `stop`, and ends only when the thread has:
    what that did can then be undone, and nothing else is done behind the task's back."""
    call = partial(contextvars.copy_context().run, work, *args)
    done, cancelled = asyncio.get_running_loop().run_in_executor(None, call), None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
            if stop is not None:
                stop.set()
    if cancelled is not None:
        done.exception()  # of which nobody is told
        raise cancelled
    return done.result()


def until(stop: threading.Event) -> Progress:
    """A `progress` of `SamKVEngine.precompute` that ends it when `stop` is set."""

    def check(_done: int, _total: int) -> None:
        if stop.is_set():
            raise SamKVError("The work was cancelled; what was stored before is kept.")

    return check
