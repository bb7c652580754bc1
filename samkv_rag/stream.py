"""An answer that arrives in pieces, made by a worker thread and cancelled by closing it."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator

from samkv_rag.errors import SamKVError
from samkv_rag.types import Answer

Job = Callable[[Callable[[str], None], Callable[[], bool]], Answer]


class AnswerStream:
    """Iterate over pieces of text; `.answer` holds the finished answer at the end; `.close()` cancels.

    An error of the model is raised from the iteration. The work starts at once.
    """

    def __init__(self, job: Job) -> None:
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._job = job
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True, name="samkv-answer")
        self._thread.start()

    def _work(self) -> None:
        try:
            self._answer = self._job(self._pieces.put, self._cancelled.is_set)
        except BaseException as error:  # handed to the consumer, who is in another thread
            self._error = error
        finally:
            self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._pieces.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def answer(self) -> Answer:
        """The finished answer; waits for it. Raises the model's error, if there was one."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise SamKVError("The stream ended without an answer.")
        return self._answer

    def close(self) -> None:
        """Stop decoding at the next token and free the engine for the next caller."""
        self._cancelled.set()
        self._thread.join()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
