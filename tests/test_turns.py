"""One at a time, first come first served, whatever happens inside or while waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from samkv_rag.turns import Turnstile

SOON = 5.0


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def queue_up(
    turnstile: Turnstile, order: list[int], number: int, inside: Callable[[], None] = lambda: None
) -> threading.Thread:
    """A thread that waits; returns when it is in the queue."""
    before = len(turnstile._waiting)

    def work() -> None:
        with turnstile:
            order.append(number)
            inside()

    thread = in_thread(work)
    wait_until(lambda: len(turnstile._waiting) == before + 1)
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def free(turnstile: Turnstile) -> bool:
    """Whether a newcomer gets in at once."""
    done = threading.Event()

    def work() -> None:
        with turnstile:
            done.set()

    in_thread(work)
    return done.wait(SOON)


def test_turns_come_in_the_order_of_arrival() -> None:
    turnstile, order = Turnstile(), list[int]()
    with turnstile:
        threads = [queue_up(turnstile, order, number) for number in range(12)]
        assert order == []
    join(*threads)
    assert order == list(range(12))


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    """Between the end of a turn and the waking of the next, the turnstile is already taken."""
    turnstile, order = Turnstile(), list[int]()
    turnstile.__enter__()
    waiting = queue_up(turnstile, order, 1)
    turnstile.__exit__(None, None, None)
    with turnstile:
        order.append(2)
    join(waiting)
    assert order == [1, 2]


def test_only_one_is_inside_at_a_time() -> None:
    turnstile, inside, most = Turnstile(), [0], [0]

    def work() -> None:
        for _ in range(50):
            with turnstile:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    join(*[in_thread(work) for _ in range(6)])
    assert most == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_frees_the_next(error: type[BaseException]) -> None:
    turnstile = Turnstile()
    with pytest.raises(error), turnstile:
        raise error
    assert free(turnstile)


class _Interrupted(threading.Event):
    """An event whose wait is interrupted, as by ctrl-C."""

    def wait(self, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile, order = Turnstile(), list[int]()
    with turnstile:
        first = queue_up(turnstile, order, 1)
        with monkeypatch.context() as patch:
            patch.setattr("samkv_rag.turns.threading.Event", _Interrupted)
            with pytest.raises(KeyboardInterrupt):
                turnstile.__enter__()
        second = queue_up(turnstile, order, 2)
    join(first, second)
    assert order == [1, 2]
    assert free(turnstile)


def test_an_interrupt_just_as_the_turn_came_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile = Turnstile()
    turnstile.__enter__()

    class TooLate(threading.Event):
        """The turn is granted, and then ctrl-C arrives before the waiting thread runs on."""

        def wait(self, timeout: float | None = None) -> bool:
            turnstile.__exit__(None, None, None)
            assert self.is_set()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("samkv_rag.turns.threading.Event", TooLate)
        with pytest.raises(KeyboardInterrupt):
            turnstile.__enter__()
    assert free(turnstile)
