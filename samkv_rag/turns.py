"""Turns at the model: one use at a time, in the order in which they were asked for.

A request takes a turn to prepare (first come, first served, at most `places` requests between preparation and last
token); all requests that decode share one turn per step; anything that is not a request (a batch of ingestion, the
self-check) comes in between. Three rules follow, which `tests/test_turns.py` checks:

- A newcomer waits for the step under way and for those that came before it, never for another's whole answer.
- A step waits for those that asked before it: newcomers cannot starve the requests that decode.
- What is not a request waits until the requests that came before it are answered, then goes ahead of later ones: an
  answer is held up by at most one batch of ingestion, and ingestion by nothing that came later.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from samkv_rag.errors import SamKVError
from samkv_rag.store.forks import AtRest

LOOK_UP_SECONDS = 0.1
"""How often a request that waits in line checks whether it has been cancelled."""


class Turnstile(AtRest):
    """Gives turns: `with turnstile:` to what is not a request, `request()` and `step()` to requests."""

    def __init__(self, places: int = 1) -> None:
        if places < 1:
            raise SamKVError("max_batch must be at least 1: the number of answers that are decoded together.")
        super().__init__()
        self._places = places
        self._numbers = itertools.count()
        self.renew()

    def renew(self) -> None:
        """With nobody in line: other threads, and what they do, are not in a child."""
        self._waiting: list[_Turn] = []
        self._busy = False
        self._present: set[int] = set()
        self._seated: set[int] = set()

    def __enter__(self) -> None:
        with self._lock:
            number = next(self._numbers)
        self.wait(_Turn(lambda: not any(other < number for other in self._present)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.give_back()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The turn of a decoding step."""
        self.wait(_Turn(lambda: True))
        try:
            yield
        finally:
            self.give_back()

    @contextmanager
    def request(self, cancelled: Callable[[], bool] | None = None) -> Iterator[Request]:
        """A request, from its arrival to its last token. One that is `cancelled` while it waits raises `SamKVError`."""
        with self._lock:
            number = next(self._numbers)
            self._present.add(number)
        try:
            yield Request(self, number, cancelled)
        finally:
            with self._lock:
                self._present.discard(number)
                self._seated.discard(number)
                self._let_in()

    def seat(self, number: int) -> _Turn:
        """A turn that comes when there is a place for the request of this number, which then takes it."""

        def may() -> bool:
            return number in self._seated or len(self._seated) < self._places

        return _Turn(may, lambda: self._seated.add(number))

    def wait(self, turn: _Turn, cancelled: Callable[[], bool] | None = None) -> None:
        """Wait in line until the turn has come."""
        try:
            with self._lock:
                self._waiting.append(turn)
                self._let_in()
            while not turn.come.wait(None if cancelled is None else LOOK_UP_SECONDS):
                if cancelled is not None and cancelled():
                    raise SamKVError("The answer was cancelled before its turn came.")
        except BaseException:
            self._abandon(turn)
            raise

    def give_back(self) -> None:
        """End the turn."""
        with self._lock:
            self._busy = False
            self._let_in()

    def _let_in(self) -> None:
        """Let in the first in line whose turn may come, if the model is free; call it with the lock held."""
        if self._busy:
            return
        turn = next((turn for turn in self._waiting if turn.may()), None)
        if turn is not None:
            self._waiting.remove(turn)
            self._busy = True
            turn.begin()
            turn.come.set()

    def _abandon(self, turn: _Turn) -> None:
        """Leave the line: an interrupted wait (ctrl-C) must not leave a turn that is never taken."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
        if turn.come.is_set():
            self.give_back()


class Request:
    """One request's passage through the turnstile; `with request:` is its turn to prepare."""

    def __init__(self, turnstile: Turnstile, number: int, cancelled: Callable[[], bool] | None) -> None:
        self._turnstile, self._number, self._cancelled = turnstile, number, cancelled

    def __enter__(self) -> None:
        self._turnstile.wait(self._turnstile.seat(self._number), self._cancelled)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._turnstile.give_back()


class _Turn:
    """One place in the line: whether its turn `may` come, and what to do when it begins."""

    def __init__(self, may: Callable[[], bool], begin: Callable[[], None] = lambda: None) -> None:
        self.may, self.begin = may, begin
        self.come = threading.Event()
