"""A process forks while its stores and lines rest: what a child inherits, it can use, and its parent can close."""

from __future__ import annotations

import os
import threading
import weakref
from functools import cache

_all: weakref.WeakSet[AtRest] = weakref.WeakSet()
_adding = threading.Lock()
_resting: list[AtRest] = []


class AtRest:
    """Something with a lock that is free in a child: the forking thread holds it meanwhile.

    `rank`: a lock of a higher rank may be asked for by a thread that has one of a lower rank, but not the other way.
    """

    rank = 1

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _watch()
        with _adding:
            _all.add(self)

    def rest(self) -> None:
        """Come to rest before the process forks."""
        self._lock.acquire()

    def renew(self) -> None:
        """Begin anew in a child, where the threads that were at work are not. By default there is nothing to begin."""

    def wake(self) -> None:
        """Go on, in the parent and in the child."""
        self._lock.release()


class Renewed(AtRest):
    """A lock that is free in a child, and for which no fork waits: what it guards may take long. It is reentrant."""

    def __init__(self) -> None:
        super().__init__()
        self.renew()

    def renew(self) -> None:
        """Held by nobody."""
        self._own = threading.RLock()

    def __enter__(self) -> bool:
        return self._own.acquire()

    def __exit__(self, *_: object) -> None:
        self._own.release()


@cache
def _watch() -> None:
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(before=_rest_all, after_in_parent=_wake_all, after_in_child=_renew_all)


def _rest_all() -> None:
    _adding.acquire()
    for one in sorted(_all, key=lambda one: (one.rank, id(one))):
        one.rest()
        _resting.append(one)


def _renew_all() -> None:
    for one in _resting:
        one.renew()
    _wake_all()


def _wake_all() -> None:
    while _resting:
        _resting.pop().wake()
    _adding.release()
