"""A process that forks while its engine is at work: a child begins anew, and waits for no thread of its parent."""

from __future__ import annotations

from tests.engine.test_together import ASKED, CHUNKS, long_answer
from tests.models import tiny_engine
from tests.store.samples import fork
from tests.store.test_forks import ended


def test_a_child_answers_while_its_parent_does() -> None:
    engine = tiny_engine(max_batch=1)
    engine.precompute(CHUNKS)
    want = engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids
    with long_answer(engine) as stream:

        def work() -> None:
            assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids == want
            engine.precompute(["A text that is new to the store of the child."])

        assert ended(fork(work))
        assert not stream._done
    assert engine.answer(ASKED, CHUNKS, max_new_tokens=4).token_ids == want
