"""Adding that fails, is cancelled, or meets another thread's work: no cache is lost, and none stays for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_samkv import ChatSamKV, ChunkKVVectorStore
from samkv_rag import SamKVEngine
from samkv_rag.adding import ADDING, LOOK_SECONDS, STALE_SECONDS
from tests.integrations.langchain.test_vectorstore import TEXTS, cached, documents, embeddings
from tests.waiting import SOON


@pytest.fixture
def store(engine: SamKVEngine) -> ChunkKVVectorStore:
    return ChunkKVVectorStore(InMemoryVectorStore(embeddings()), ChatSamKV(engine=engine))


class Broken(InMemoryVectorStore):
    """A store that cannot be added to."""

    def add_documents(self, *args: Any, **kwargs: Any) -> list[str]:
        raise RuntimeError("the index is read-only")


def test_a_store_that_fails_leaves_no_caches(engine: SamKVEngine) -> None:
    store = ChunkKVVectorStore(Broken(embeddings()), engine)
    with pytest.raises(RuntimeError, match="read-only"):
        store.add_documents(documents(a=TEXTS[0]))
    assert len(engine.store) == 0 and engine.store.owned() == []


def test_a_store_that_fails_leaves_the_caches_that_were_there(engine: SamKVEngine) -> None:
    engine.precompute(TEXTS[:1])
    store = ChunkKVVectorStore(Broken(embeddings()), engine)
    with pytest.raises(RuntimeError, match="read-only"):
        store.add_documents(documents(a=TEXTS[0], b=TEXTS[1]))
    assert [cached(engine, text) for text in TEXTS] == [True, False, False] and engine.store.owned() == []
    assert len(engine.plan(TEXTS[0]).chunks) == 1 and not engine.plan(TEXTS[1]).chunks


async def test_adding_that_is_cancelled_leaves_nothing_behind(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    begun, go_on, inner = threading.Event(), threading.Event(), engine.store.put

    def put(*args: Any, **kwargs: Any) -> None:
        begun.set()
        assert go_on.wait(SOON)
        inner(*args, **kwargs)

    engine.store.put = put  # type: ignore[method-assign]
    adding = asyncio.create_task(store.aadd_documents(documents(a=TEXTS[0], b=TEXTS[1])))
    assert await asyncio.to_thread(begun.wait, SOON)
    for _ in range(2):  # impatient callers cancel twice
        adding.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert len(engine.store) == 0 and engine.store.owned() == [] and not store.get_by_ids(["a", "b"])
    await store.aadd_documents(documents(a=TEXTS[0]))
    await store.adelete(["a"])
    assert len(engine.store) == 0 and engine.store.owned() == []


async def test_two_that_are_cancelled_spare_what_was_there(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    class Waiting(InMemoryVectorStore):
        async def aadd_documents(self, *args: Any, **kwargs: Any) -> list[str]:
            reached.release()
            await asyncio.sleep(SOON)
            return []

    reached = asyncio.Semaphore(0)
    engine.precompute(TEXTS[:1])
    store = ChunkKVVectorStore(Waiting(embeddings()), engine)
    adding = [asyncio.create_task(store.aadd_documents(documents(**{id: TEXTS[0], f"{id}2": TEXTS[1]}))) for id in "ab"]
    for _ in adding:
        await reached.acquire()
    assert [cached(engine, text) for text in TEXTS] == [True, True, False]
    for task in adding:
        task.cancel()
    await asyncio.gather(*adding, return_exceptions=True)
    assert [cached(engine, text) for text in TEXTS] == [True, False, False] and engine.store.owned() == []


def test_what_a_killed_process_held_is_released_some_day(
    engine: SamKVEngine, store: ChunkKVVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(text: str, seconds_ago: float) -> None:
        engine.precompute([text])
        engine.store.retain(engine.keys([text])[0], f"{ADDING}{int(time.time() - seconds_ago)}/x")

    held(TEXTS[0], STALE_SECONDS + 60)
    held(TEXTS[1], STALE_SECONDS - 60)
    store.add_documents(documents(c=TEXTS[2]))
    assert [cached(engine, text) for text in TEXTS] == [False, True, True]
    later = time.time() + LOOK_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    store.add_documents(documents(d=TEXTS[2]))
    assert [cached(engine, text) for text in TEXTS] == [False, False, True]


@pytest.mark.parametrize("collection", ["adding", "%adding"])
def test_a_collection_may_be_called_anything(engine: SamKVEngine, collection: str) -> None:
    for name, text in zip(("3", "4"), TEXTS, strict=False):
        inner = InMemoryVectorStore(embeddings())
        ChunkKVVectorStore(inner, engine, collection=collection).add_documents(documents(**{name: text}))
    assert [cached(engine, text) for text in TEXTS] == [True, True, False]


def test_what_is_deleted_while_it_is_added_again_is_made_again(engine: SamKVEngine) -> None:
    class Slow(InMemoryVectorStore):
        def add_documents(self, docs: Any, **kwargs: Any) -> list[str]:
            other.add_documents(documents(b=TEXTS[0]))  # as another thread may
            other.delete(["b"])
            return super().add_documents(docs, **kwargs)

    engine.precompute(TEXTS[:1])
    other = ChunkKVVectorStore(InMemoryVectorStore(embeddings()), engine, collection="other")
    ChunkKVVectorStore(Slow(embeddings()), engine).add_documents(documents(a=TEXTS[0]))
    assert cached(engine, TEXTS[0]) and len(engine.plan(TEXTS[0]).chunks) == 1


def test_a_document_that_is_added_while_one_with_its_text_is_deleted_keeps_its_cache(
    engine: SamKVEngine, store: ChunkKVVectorStore
) -> None:
    store.add_documents(documents(a=TEXTS[0]))
    release = engine.store.release

    def released(*args: Any) -> list[str]:
        engine.store.release = release  # type: ignore[method-assign]
        gone = release(*args)
        store.add_documents(documents(b=TEXTS[0]))  # as another thread may
        return gone

    engine.store.release = released  # type: ignore[method-assign]
    store.delete(["a"])
    assert cached(engine, TEXTS[0]) and [name[-1] for name, _ in engine.store.owned()] == ["b"]
    assert len(engine.plan(TEXTS[0]).chunks) == 1


async def test_async_adding_leaves_the_event_loop_free(store: ChunkKVVectorStore, engine: SamKVEngine) -> None:
    workers = set()
    inner = engine.precompute
    engine.precompute = lambda *args, **kw: workers.add(threading.get_ident()) or inner(*args, **kw)  # type: ignore[method-assign]
    release = engine.store.release
    engine.store.release = lambda *args: workers.add(threading.get_ident()) or release(*args)  # type: ignore[method-assign]
    await store.aadd_documents(documents(a=TEXTS[0]))
    await store.aadd_texts([TEXTS[1]], ids=["b"])
    assert threading.get_ident() not in workers and len(engine.store) == 2
    assert [found.id for found in await store.asimilarity_search(TEXTS[1], k=1)] == ["b"]
    await store.adelete(["a", "b"])
    assert len(engine.store) == 0
