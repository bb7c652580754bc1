"""One use of the model at a time, in the order of asking, whatever happens; and what waits for what."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from samkv_rag.errors import SamKVError
from samkv_rag.turns import Turnstile
from tests.waiting import SOON, wait_until


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def queue_up(turnstile: Turnstile, order: list[str], name: str, turn: AbstractContextManager[None]) -> threading.Thread:
    """Start a thread that waits for `turn`, then notes its name; return it once it is in line."""
    before = len(turnstile._waiting)

    def work() -> None:
        with turn:
            order.append(name)

    thread = in_thread(work)
    wait_until(lambda: len(turnstile._waiting) == before + 1)
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def free(turnstile: Turnstile) -> bool:
    """Whether a newcomer gets in at once, whatever it wants."""
    done = threading.Event()

    def work() -> None:
        with turnstile.request() as request, request:
            pass
        with turnstile.step():
            pass
        with turnstile:
            done.set()

    in_thread(work)
    return done.wait(SOON)


class Stay:
    """A request that has arrived; `leave` ends it."""

    def __init__(self, turnstile: Turnstile, cancelled: Callable[[], bool] | None = None) -> None:
        self._whole = turnstile.request(cancelled)
        self.turn = self._whole.__enter__()

    def leave(self) -> None:
        self._whole.__exit__(None, None, None)


# -- one at a time, in order ---------------------------------------------------------------------------------------


def test_turns_come_in_the_order_of_arrival() -> None:
    turnstile, order = Turnstile(), list[str]()
    with turnstile:
        threads = [queue_up(turnstile, order, str(number), turnstile) for number in range(12)]
        assert order == []
    join(*threads)
    assert order == [str(number) for number in range(12)]


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    """Between the end of a turn and the waking of the next, the turnstile is already taken."""
    turnstile, order = Turnstile(), list[str]()
    turnstile.__enter__()
    waiting = queue_up(turnstile, order, "first", turnstile)
    turnstile.__exit__(None, None, None)
    with turnstile:
        order.append("second")
    join(waiting)
    assert order == ["first", "second"]


def test_only_one_is_inside_and_no_more_are_seated_than_there_are_places() -> None:
    turnstile, counts = Turnstile(places=3), {"inside": 0, "seated": 0}
    most = dict(counts)

    def count(what: str, by: int) -> None:
        counts[what] += by
        most[what] = max(most[what], counts[what])

    def use(turn: AbstractContextManager[None]) -> None:
        with turn:
            count("inside", 1)
            time.sleep(0)
            count("inside", -1)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            if rng.random() < 0.3:
                use(turnstile)
                continue
            with turnstile.request() as request:
                with request:
                    count("inside", 1)
                    count("seated", 1)
                    count("inside", -1)
                for _ in range(rng.randrange(4)):
                    use(turnstile.step())
                with request:  # inside, so that the count is exact
                    count("seated", -1)

    join(*[in_thread(lambda seed=seed: work(seed)) for seed in range(8)])
    assert most == {"inside": 1, "seated": 3}
    assert free(turnstile)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_frees_the_next(error: type[BaseException]) -> None:
    turnstile = Turnstile()
    with pytest.raises(error), turnstile:
        raise error
    with pytest.raises(error), turnstile.step():
        raise error
    with pytest.raises(error), turnstile.request() as request, request:
        raise error
    assert free(turnstile)


class _Interrupted(threading.Event):
    """An event whose wait is interrupted, as by ctrl-C."""

    def wait(self, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile, order = Turnstile(), list[str]()
    with turnstile:
        first = queue_up(turnstile, order, "first", turnstile)
        with monkeypatch.context() as patch:
            patch.setattr("samkv_rag.turns.threading.Event", _Interrupted)
            with pytest.raises(KeyboardInterrupt):
                turnstile.__enter__()
        second = queue_up(turnstile, order, "second", turnstile)
    join(first, second)
    assert order == ["first", "second"]
    assert free(turnstile)


def test_an_interrupt_just_as_the_turn_came_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    turnstile = Turnstile()
    turnstile.__enter__()

    class TooLate(threading.Event):
        """The turn is granted, and then ctrl-C arrives before the waiting thread continues."""

        def wait(self, timeout: float | None = None) -> bool:
            turnstile.__exit__(None, None, None)
            assert self.is_set()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("samkv_rag.turns.threading.Event", TooLate)
        with pytest.raises(KeyboardInterrupt):
            turnstile.__enter__()
    assert free(turnstile)


# -- what waits for what -------------------------------------------------------------------------------------------


def test_a_newcomer_waits_for_the_step_under_way_and_not_for_the_answer() -> None:
    turnstile, order = Turnstile(places=2), list[str]()
    decoding = Stay(turnstile)
    with decoding.turn:
        pass
    newcomer = Stay(turnstile)
    with turnstile.step():
        thread = queue_up(turnstile, order, "newcomer", newcomer.turn)
        assert order == []
    join(thread)
    assert order == ["newcomer"]


def test_a_step_is_not_overtaken_by_who_came_after_it() -> None:
    """A stream of newcomers cannot starve the requests that decode."""
    turnstile, order = Turnstile(places=4), list[str]()
    stays = [Stay(turnstile) for _ in range(3)]
    with stays[0].turn:
        threads = [
            queue_up(turnstile, order, "newcomer", stays[1].turn),
            queue_up(turnstile, order, "step", turnstile.step()),
            queue_up(turnstile, order, "later newcomer", stays[2].turn),
        ]
    join(*threads)
    assert order == ["newcomer", "step", "later newcomer"]


def test_without_a_place_a_request_waits_for_one_while_steps_go_on() -> None:
    turnstile, order = Turnstile(places=1), list[str]()
    seated, waiting = Stay(turnstile), Stay(turnstile)
    with seated.turn:
        thread = queue_up(turnstile, order, "waiting", waiting.turn)
    with turnstile.step():
        pass
    with seated.turn:  # a seated request may use the model again: to store what it missed
        pass
    assert order == []
    seated.leave()
    join(thread)
    assert order == ["waiting"]


def test_ingestion_waits_for_earlier_requests_and_goes_ahead_of_later_ones() -> None:
    turnstile, order = Turnstile(places=2), list[str]()
    earlier = Stay(turnstile)
    with earlier.turn:
        ingestion = queue_up(turnstile, order, "ingestion", turnstile)
    later = Stay(turnstile)
    with later.turn:
        order.append("later request")
    with turnstile.step():
        earlier.leave()
        step = queue_up(turnstile, order, "step", turnstile.step())
    join(ingestion, step)
    assert order == ["later request", "ingestion", "step"], "the later request has not left"
    later.leave()
    assert free(turnstile)


def test_one_that_is_cancelled_while_it_waits_leaves_the_line_with_a_sentence() -> None:
    turnstile, order, gone = Turnstile(), list[str](), threading.Event()
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            with turnstile.request(gone.is_set) as request, request:
                order.append("never")
        except SamKVError as error:
            seen.append(error)

    with turnstile:
        thread = in_thread(wait)
        wait_until(lambda: len(turnstile._waiting) == 1)
        gone.set()
        join(thread)
        assert "cancelled before its turn" in str(seen[0])
    assert order == []
    assert free(turnstile)


def test_no_places_at_all_are_refused() -> None:
    with pytest.raises(SamKVError, match="max_batch must be at least 1"):
        Turnstile(places=0)
