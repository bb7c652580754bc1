"""The answers that are decoded together; the thread of one of their callers drives the steps for all.

Every caller waits for its own answer in its own thread; one of these threads takes the steps until its answer has
ended, then another takes over. A thread of the engine's own would have to be started, closed, replaced after a fork,
and told of ctrl-C; here nothing runs when no caller waits, there is nothing to close, ctrl-C is raised in the thread
that waits or drives, and a single caller computes in its own thread as in any other library. An interrupted step is
repeated by the next driver (see `Loop.step`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from samkv_rag.model.decoding import Decoding
from samkv_rag.store.forks import AtRest
from samkv_rag.turns import Turnstile

Step = Callable[[Sequence[Decoding]], None]


class Batch(AtRest):
    """Answers being decoded, which join and leave between steps; every step is a turn at the turnstile."""

    def __init__(self, turnstile: Turnstile) -> None:
        super().__init__()
        self._turnstile = turnstile
        self.renew()

    def renew(self) -> None:
        """Without answers: those of other threads do not go on in a child."""
        self._rows: list[Decoding] = []
        self._driven = False
        self._news = threading.Condition(self._lock)

    def finish(self, decoding: Decoding, step: Step) -> list[int]:
        """Decode to the end together with all others here; return the new token ids, or raise this one's error."""
        with self._news:
            self._rows.append(decoding)
        try:
            while not decoding.ended:
                if self._take_over(decoding):
                    self._drive(decoding, step)
        finally:
            with self._news:
                self._rows = [row for row in self._rows if row is not decoding]
        return decoding.result()

    def _take_over(self, decoding: Decoding) -> bool:
        """Wait until the answer has ended or the driver has stopped; True if this thread is to drive."""
        with self._news:
            self._news.wait_for(lambda: decoding.ended or not self._driven)
            if decoding.ended:
                return False
            self._driven = True
            return True

    def _drive(self, decoding: Decoding, step: Step) -> None:
        try:
            while not decoding.ended:
                with self._turnstile.step():
                    step(self._unfinished())
                self._tell()
        finally:
            with self._news:
                self._driven = False
                self._news.notify_all()

    def _unfinished(self) -> list[Decoding]:
        with self._news:
            return [row for row in self._rows if not row.ended]

    def _tell(self) -> None:
        with self._news:
            if any(row.ended for row in self._rows):
                self._news.notify_all()
