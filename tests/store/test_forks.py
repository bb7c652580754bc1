"""A process that forks: neither it nor its child waits for a lock for ever, or writes what nobody will find."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from samkv_rag.store import ChunkKVStore
from samkv_rag.store.forks import AtRest

from .samples import KEYS, fork, in_child, make_chunk, same, wait

A, B, C, D = KEYS[:4]


def ended(child: int, seconds: float = 20.0) -> bool:
    """Whether a child has ended well in time; it is killed otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def owning(folder: Path, key: str, owner: str) -> Callable[[], None]:
    """What a process of its own does: puts a chunk, whose owner it names."""

    def work() -> None:
        with ChunkKVStore(folder) as store:
            store.put(key, make_chunk(KEYS.index(key)))
            store.retain(key, owner)

    return work


def test_what_a_child_writes_is_there_when_its_parent_has_closed_the_store(folder: Path) -> None:
    (here, there), (back, answer) = os.pipe(), os.pipe()
    store = ChunkKVStore(folder)
    store.put(A, make_chunk())

    def work() -> None:
        store.put(B, make_chunk(1))
        os.write(answer, b"1")
        os.read(here, 1)  # the parent closes the store, and another process uses it
        store.put(C, make_chunk(2))
        store.retain(C, "child")
        store.close()

    child = fork(work)
    assert os.read(back, 1)
    store.close()
    assert in_child(owning(folder, D, "other")) == 0
    os.write(there, b"1")
    assert wait(child) == 0
    with ChunkKVStore(folder) as again:
        assert again.owned() == [("child", C), ("other", D)] and len(again) == 4
        assert all(same(again, key, make_chunk(KEYS.index(key))) for key in (A, B, C, D))


def test_a_child_that_is_forked_while_a_thread_writes_does_not_wait_for_ever(folder: Path) -> None:
    store, done = ChunkKVStore(folder), threading.Event()

    def write() -> None:
        while not done.is_set():
            for number, key in enumerate(KEYS[:6]):
                store.put(key, make_chunk(number))
                store.summary(key)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            time.sleep(0.02)
            assert ended(fork(lambda: (A in store) and store.retain(A, "child")))
    finally:
        done.set()
        thread.join()
        store.close()


def test_locks_are_taken_in_order_and_free_on_both_sides() -> None:
    order: list[str] = []

    class Told(AtRest):
        def __init__(self, name: str, rank: int) -> None:
            super().__init__()
            self.name, self.rank = name, rank  # type: ignore[misc]

        def rest(self) -> None:
            super().rest()
            order.append(self.name)

    inner, outer = Told("inner", 1), Told("outer", 0)

    def free() -> None:
        for one in (inner, outer):
            taken: list[bool] = []
            thread = threading.Thread(target=lambda one=one, taken=taken: taken.append(one._lock.acquire(timeout=5)))  # type: ignore[misc]
            thread.start()
            thread.join()
            assert taken == [True]

    assert in_child(free) == 0
    free()
    assert order == ["outer", "inner"]
