"""A process that forks while its engine is at work: a child begins anew, and waits for no thread of its parent."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from tests.engine.test_together import ASKED, CHUNKS, long_answer
from tests.models import tiny_engine
from tests.store.samples import fork
from tests.store.test_forks import ended
from tests.waiting import SOON


def test_a_child_answers_while_its_parent_does() -> None:
    engine = tiny_engine(max_batch=1)
    engine.precompute(CHUNKS)
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids
    with long_answer(engine):

        def work() -> None:
            assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids == want
            engine.precompute(["A text that is new to the store of the child."])

        assert ended(fork(work))
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids == want


def test_a_child_does_not_wait_for_what_its_parent_stores_or_loads() -> None:
    engine, there, go_on = tiny_engine(), threading.Barrier(3), threading.Event()

    def held_by_another(block: AbstractContextManager[object]) -> threading.Thread:
        def work() -> None:
            with block:
                there.wait(SOON)
                assert go_on.wait(SOON)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def work() -> None:
        assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids
        engine.close()

    threads = [held_by_another(block) for block in (engine._library.held_open(), engine._loading)]
    there.wait(SOON)
    try:
        assert ended(fork(work))
    finally:
        go_on.set()
        for thread in threads:
            thread.join(SOON)
