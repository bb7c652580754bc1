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


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` returns, called in a thread. A cancelled task ends only when the thread has: what that did can
    then be undone, and nothing else is done behind the task's back."""
    return await _awaited(partial(work, *args), lambda: None)


async def stoppable(work: Callable[[Progress], T]) -> T:
    """The same of `work(progress)`: a `progress` for `SamKVEngine.precompute`, which ends that when the task is
    cancelled."""
    stop = threading.Event()

    def check(_done: int = 0, _total: int = 0) -> None:
        if stop.is_set():
            raise SamKVError("The work was cancelled; what was stored before is kept.")

    def checked() -> T:
        check()
        return work(check)

    return await _awaited(checked, stop.set)


async def _awaited(work: Callable[[], T], stop: Callable[[], None]) -> T:
    call = partial(contextvars.copy_context().run, work)
    done, cancelled = asyncio.get_running_loop().run_in_executor(None, call), None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
            stop()
    if cancelled is not None:
        done.exception()  # of which nobody is told
        raise cancelled
    return done.result()
