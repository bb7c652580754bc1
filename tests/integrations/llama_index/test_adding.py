"""Adding nodes that is cancelled, or meets another thread's work: no cache is lost, and none stays for ever."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from llama_index.core.vector_stores import SimpleVectorStore

from llama_index.llms.samkv import ChunkKVVectorStore, SamKVLLM
from tests.integrations.llama_index.kit import TEXTS
from tests.integrations.llama_index.test_ingest import of, stored
from tests.waiting import SOON


class Slow:
    """A KV store's `put` that waits to go on."""

    def __init__(self, llm: SamKVLLM) -> None:
        self.begun, self.go_on, self.inner = threading.Event(), threading.Event(), llm.engine.store.put
        llm.engine.store.put = self.put  # type: ignore[method-assign]

    def put(self, *args: Any, **kwargs: Any) -> None:
        self.begun.set()
        assert self.go_on.wait(SOON)
        self.inner(*args, **kwargs)


async def cancelled(task: asyncio.Task[Any], slow: Slow) -> None:
    """Cancel a task while it stores something, twice, as impatient callers do."""
    assert await asyncio.to_thread(slow.begun.wait, SOON)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_adding_that_is_cancelled_leaves_nothing_behind(llm: SamKVLLM) -> None:
    llm.precompute([TEXTS[1]])
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    await cancelled(asyncio.create_task(store.async_add(of("a", *TEXTS[:3]))), Slow(llm))
    assert stored(llm) == {TEXTS[1]} and llm.engine.store.owned() == [] and not store.inner.data.embedding_dict
    await store.async_add(of("a", TEXTS[0]))
    await store.adelete("a")
    assert stored(llm) == {TEXTS[1]} and llm.engine.store.owned() == []


async def test_precomputing_that_is_cancelled_keeps_what_was_stored_and_computes_no_more(llm: SamKVLLM) -> None:
    texts = [f"{text} {'And so on. ' * 200}" for text in TEXTS]  # each in a batch of its own
    await cancelled(asyncio.create_task(llm.aprecompute(texts)), Slow(llm))
    assert 0 < len(stored(llm)) < len(texts)
    assert len(await llm.aprecompute(texts)) == len(texts) == len(stored(llm))


def test_a_node_that_is_added_while_one_with_its_text_is_deleted_keeps_its_cache(llm: SamKVLLM) -> None:
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    store.add(of("a", TEXTS[0]))
    release = llm.engine.store.release

    def released(*args: Any) -> list[str]:
        llm.engine.store.release = release  # type: ignore[method-assign]
        gone = release(*args)
        store.add(of("b", TEXTS[0]))  # as another thread may
        return gone

    llm.engine.store.release = released  # type: ignore[method-assign]
    store.delete("a")
    assert stored(llm) == {TEXTS[0]} and [name for name, _ in llm.engine.store.owned()] == ["llama_index/default/b/b-0"]
    assert llm.explain(TEXTS[0]).keys


async def test_adding_that_is_cancelled_leaves_what_a_retry_has_added(llm: SamKVLLM) -> None:
    class Waiting(SimpleVectorStore):
        async def async_add(self, nodes: Any, **kwargs: Any) -> list[str]:
            reached.set()
            await asyncio.sleep(SOON)
            return []

    reached = asyncio.Event()
    first = asyncio.create_task(ChunkKVVectorStore(Waiting(), llm=llm).async_add(of("a", TEXTS[0])))
    await reached.wait()
    await ChunkKVVectorStore(SimpleVectorStore(), llm=llm).async_add(of("a", TEXTS[0]))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert stored(llm) == {TEXTS[0]} and [name for name, _ in llm.engine.store.owned()] == ["llama_index/default/a/a-0"]
