"""An answer that arrives in pieces, made by a worker thread and cancelled by closing it."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import NoReturn

from samkv_rag.errors import SamKVError
from samkv_rag.options import fits
from samkv_rag.types import Answer

Job = Callable[[Callable[[str], None], Callable[[], bool], Callable[[Answer], None]], Answer]
"""Makes an answer, given what receives its pieces, what says whether it is cancelled, and what may receive it early."""
PATIENCE = 10.0
"""Seconds that Python waits at exit for streams that were not closed: they stop at the next token."""

_LONGEST = threading.TIMEOUT_MAX - 1
"""Seconds that a thread can wait; one less, as sums with a clock's time are rounded."""

_running: set[AnswerStream] = set()


@functools.cache
def _stop_at_exit() -> None:
    """At exit, end streams that were not closed, before Python takes down what their threads use; registered once."""
    atexit.register(_stop_running)


def _stop_running() -> None:
    left = list(_running)
    for stream in left:
        stream.cancel()
    for stream in left:
        stream.join(PATIENCE)


def _let_go(error: BaseException) -> None:
    """Drop what the frames of a finished answer hold: its keys and values must not live for as long as its error is
    kept."""
    left: BaseException | None = error
    while left is not None:
        traceback.clear_frames(left.__traceback__)
        left = left.__cause__ or left.__context__


class AnswerStream:
    """Iterate (`for` or `async for`) over pieces of text; `.answer` is the finished answer; `.close()` cancels.

    `with` and `async with` close it at the end. A task that is cancelled while it iterates or waits cancels the answer.

    An error of the model is raised from the iteration and from `.answer`. The work starts at once. A caller that still
    waits for it after `timeout` seconds gets a `TimeoutError`, and the work is cancelled. Raises `SamKVError` for a
    `timeout` that is no number.
    """

    def __init__(self, job: Job, timeout: float | None = None) -> None:
        if not fits(timeout, float | None) or timeout != timeout:
            raise SamKVError(f"timeout must be a number of seconds or None, not {timeout!r}.")
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + min(timeout, _LONGEST)
        self._pieces: list[str] = []
        self._done = False
        self._news = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._cancelled = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._job = job
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True, name="samkv-answer")
        _stop_at_exit()
        _running.add(self)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._finish(self._job(self._emit, self._cancelled.is_set, self._finish))
        except BaseException as error:  # passed to the consumer, which is in another thread
            _let_go(error)
            self._error = error
            self._emit(None)
        finally:
            _running.discard(self)

    def _finish(self, answer: Answer) -> None:
        self._answer = answer
        self._emit(None)

    def _emit(self, piece: str | None) -> None:
        """Take a new piece, or None at the end; wake all that wait, in threads and in event loops."""
        with self._news:
            if piece is None:
                self._done = True
            else:
                self._pieces.append(piece)
            self._news.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def __iter__(self) -> Iterator[str]:
        taken = 0
        while True:
            with self._news:
                news = self._news.wait_for(lambda seen=taken: self._done or len(self._pieces) > seen, self._left())  # type: ignore[misc]
                fresh, done = self._pieces[taken:], self._done
            if not news:
                self._give_up()
            yield from fresh
            taken += len(fresh)
            if done and taken == len(self._pieces):
                break
        self._raise_error()

    async def __aiter__(self) -> AsyncIterator[str]:
        taken, news = 0, asyncio.Event()
        with self._waking(news):
            while True:
                news.clear()
                fresh, done = self._pieces[taken:], self._done
                for piece in fresh:
                    yield piece
                taken += len(fresh)
                if done and taken == len(self._pieces):
                    break
                if not fresh:
                    await self._next(news)
        self._raise_error()

    async def wait(self) -> Answer:
        """The finished answer, without blocking the event loop; a cancelled wait cancels the answer too."""
        news = asyncio.Event()
        with self._waking(news):
            while not self._done:
                news.clear()
                if not self._done:
                    await self._next(news)
        return self.answer

    async def _next(self, news: asyncio.Event) -> None:
        """Wait for news; a task that is cancelled meanwhile, or runs out of time, cancels the answer."""
        try:
            async with asyncio.timeout(self._left()):  # `wait_for` may swallow a cancellation (Python 3.11)
                await news.wait()
        except TimeoutError:
            self._give_up()
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _give_up(self) -> NoReturn:
        self.cancel()
        raise TimeoutError(
            f"There was no answer within {self._timeout:g} seconds; allow more time, or ask for fewer new tokens."
        )

    def _waking(self, event: asyncio.Event) -> _Waking:
        return _Waking(self._wakers, event)

    @property
    def answer(self) -> Answer:
        """The finished answer; waits for it. Raises the model's error, if there was one."""
        with self._news:
            if not self._news.wait_for(lambda: self._done, self._left()):
                self._give_up()
        self._raise_error()
        if self._answer is None:
            raise SamKVError("The stream ended without an answer.")
        return self._answer

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Ask decoding to stop at the next token; returns at once."""
        self._cancelled.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the engine has finished with the answer and stored what it missed, at most `timeout` seconds."""
        self._thread.join(timeout)

    def close(self) -> None:
        """Stop decoding at the next token, or waiting for a turn, and wait until no more pieces come."""
        self.cancel()
        with self._news:
            self._news.wait_for(lambda: self._done)

    async def aclose(self) -> None:
        """As `close`, without blocking the event loop."""
        self.cancel()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class _Waking:
    """While entered, every new piece sets an event of the running loop."""

    def __init__(self, wakers: list[Callable[[], object]], event: asyncio.Event) -> None:
        self._wakers = wakers
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # a loop that was closed meanwhile waits for nothing
                loop.call_soon_threadsafe(event.set)

        self._wake = wake

    def __enter__(self) -> None:
        self._wakers.append(self._wake)

    def __exit__(self, *exc: object) -> None:
        self._wakers.remove(self._wake)
