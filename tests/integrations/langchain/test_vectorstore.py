"""The wrapper is a vector store like any other, and its caches come and go with the documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from langchain_samkv import ChatSamKV, ChunkKVVectorStore, precompute
from samkv_rag import SamKVEngine, SamKVError
from tests.models import tiny_engine

TEXTS = [
    "Lumen Labs was founded in 1998 and has its office in Harrow.",
    "Orchid Freight carries timber from Vell to the southern ports.",
    "The library of Tamsin closes at nine, and at five on Sundays.",
]


def embeddings() -> DeterministicFakeEmbedding:
    return DeterministicFakeEmbedding(size=6)


class TestVectorStore(VectorStoreIntegrationTests):
    """The standard suite, with its short documents cached, too (`min_chars=1`)."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        inner = InMemoryVectorStore(self.get_embeddings())
        yield ChunkKVVectorStore(inner, tiny_engine(chat=True), min_chars=1)


@pytest.fixture
def store(engine: SamKVEngine) -> ChunkKVVectorStore:
    return ChunkKVVectorStore(InMemoryVectorStore(embeddings()), ChatSamKV(engine=engine))


def documents(**ids: str) -> list[Document]:
    return [Document(id=id, page_content=text) for id, text in ids.items()]


def cached(engine: SamKVEngine, text: str) -> bool:
    return engine.keys([text])[0] in engine.store


def test_caches_live_as_long_as_some_document_has_the_text(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    store.add_documents(documents(a=TEXTS[0], b=TEXTS[0], c=TEXTS[1]))
    assert len(engine.store) == 2
    store.delete(["a"])
    assert cached(engine, TEXTS[0])
    store.delete(["b"])
    assert not cached(engine, TEXTS[0]) and cached(engine, TEXTS[1])
    assert engine.plan(TEXTS[0]).misses == ()  # the text is no longer looked for, so nothing caches it again
    store.delete(["c"])
    assert len(engine.store) == 0 and engine.store.owned() == []


class Filtering(InMemoryVectorStore):
    """A store that deletes by a filter too, as Chroma does."""

    def delete(self, ids: Any = None, source: str | None = None, **kwargs: Any) -> None:
        found = [id for id, entry in self.store.items() if entry["metadata"].get("source") == source]
        super().delete(found if ids is None else ids)

    async def adelete(self, ids: Any = None, **kwargs: Any) -> None:
        self.delete(ids, **kwargs)


class Opaque(InMemoryVectorStore):
    """A store that finds documents by id and lists none."""

    def __init__(self, inner: InMemoryVectorStore) -> None:
        self.inner = inner

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        return self.inner.add_documents(documents, **kwargs)

    def get_by_ids(self, ids: Any, /) -> list[Document]:
        return self.inner.get_by_ids(ids)

    def delete(self, ids: Any = None, **kwargs: Any) -> None:
        self.inner.delete(ids, **kwargs)


def sourced() -> list[Document]:
    return [Document(id=id, page_content=text, metadata={"source": id}) for id, text in zip("abc", TEXTS, strict=True)]


async def test_deleting_by_a_filter_releases_what_went_and_nothing_else(engine: SamKVEngine) -> None:
    store = ChunkKVVectorStore(Filtering(embeddings()), engine)
    store.add_documents(sourced())
    store.delete(source="a")
    assert [cached(engine, text) for text in TEXTS] == [False, True, True]
    await store.adelete(source="b")
    assert [cached(engine, text) for text in TEXTS] == [False, False, True]
    store.delete(source="nobody's")
    assert cached(engine, TEXTS[2])


def test_a_delete_that_deletes_nothing_keeps_the_caches(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    store.add_documents(sourced())
    store.delete()  # InMemoryVectorStore's deletes the given ids, and none are given
    assert len(store.get_by_ids(["a", "b", "c"])) == len(engine.store) == 3


def test_a_store_that_says_not_what_it_deleted_keeps_the_caches(
    engine: SamKVEngine, caplog: pytest.LogCaptureFixture
) -> None:
    store = ChunkKVVectorStore(Opaque(Filtering(embeddings())), engine)
    store.add_documents(sourced())
    store.delete(source="a")
    assert len(engine.store) == 3 and "Opaque deletes documents without saying which" in caplog.text
    store.delete(["b"])
    assert not cached(engine, TEXTS[1]) and len(caplog.records) == 1


def test_a_document_that_changes_changes_its_cache(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    store.add_documents(documents(a=TEXTS[0]))
    store.add_documents(documents(a=TEXTS[1]))
    assert not cached(engine, TEXTS[0]) and cached(engine, TEXTS[1])
    assert store.get_by_ids(["a"])[0].page_content == TEXTS[1]


@pytest.mark.parametrize(
    "left, right",
    [(("left", "1"), ("right", "1")), (("team", "docs/1"), ("team/docs", "1")), (("a/b", "1"), ("a%2Fb", "1"))],
)
def test_ids_of_two_collections_do_not_meet(
    engine: SamKVEngine, left: tuple[str, str], right: tuple[str, str]
) -> None:  # fmt: skip
    stores = []
    for (collection, id), text in zip((left, right), TEXTS, strict=False):
        stores.append(ChunkKVVectorStore(InMemoryVectorStore(embeddings()), engine, collection=collection))
        stores[-1].add_texts([text], ids=[id])
    stores[0].delete([left[1]])
    assert not cached(engine, TEXTS[0]) and cached(engine, TEXTS[1])


def test_short_texts_are_not_cached(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    store.add_texts(["the", TEXTS[0]])
    assert len(engine.store) == 1


def test_nothing_is_put_into_metadata(store: ChunkKVVectorStore) -> None:
    store.add_documents([Document(id="a", page_content=TEXTS[0], metadata={"source": "s"})])
    assert store.similarity_search("Lumen", k=1) == [
        Document(id="a", page_content=TEXTS[0], metadata={"source": "s"})
    ]  # fmt: skip


def test_index_adds_once_and_cleans_up(engine: SamKVEngine, store: ChunkKVVectorStore) -> None:
    records = InMemoryRecordManager("docs")
    records.create_schema()

    def run(*texts: str) -> Any:
        docs = [Document(page_content=text, metadata={"source": "s"}) for text in texts]
        return index(docs, records, store, cleanup="incremental", source_id_key="source", key_encoder="blake2b")

    assert run(TEXTS[0], TEXTS[1])["num_added"] == 2 and len(engine.store) == 2
    assert run(TEXTS[0], TEXTS[1])["num_skipped"] == 2
    changed = run(TEXTS[0], TEXTS[2])
    assert (changed["num_added"], changed["num_deleted"]) == (1, 1)
    assert [cached(engine, text) for text in TEXTS] == [True, False, True]


def test_searches_are_the_wrapped_stores(store: ChunkKVVectorStore) -> None:
    store.add_texts(TEXTS, ids=["0", "1", "2"])
    vector = embeddings().embed_query(TEXTS[1])
    assert store.similarity_search_with_score(TEXTS[1], k=1)[0][0].id == "1"
    assert store.similarity_search_by_vector(vector, k=1)[0].id == "1"
    assert store.max_marginal_relevance_search(TEXTS[1], k=1)[0].id == "1"
    assert store.as_retriever(search_kwargs={"k": 1}).invoke(TEXTS[1])[0].id == "1"
    assert store.as_retriever(search_type="mmr", search_kwargs={"k": 1}).invoke(TEXTS[1])[0].id == "1"
    assert store.embeddings is store.inner.embeddings


def test_from_texts_and_from_documents(engine: SamKVEngine) -> None:
    store = ChunkKVVectorStore.from_texts(TEXTS, embeddings(), llm=engine)
    assert len(engine.store) == 3 and store.similarity_search(TEXTS[2], k=1)[0].page_content == TEXTS[2]
    again = ChunkKVVectorStore.from_documents(documents(a=TEXTS[0]), embeddings(), llm=engine)
    assert again.get_by_ids(["a"])[0].page_content == TEXTS[0]
    with pytest.raises(TypeError, match="needs llm="):
        ChunkKVVectorStore.from_texts(TEXTS, embeddings())


def test_an_existing_store_is_cached_without_embedding_again(engine: SamKVEngine) -> None:
    class Counting(DeterministicFakeEmbedding):
        calls: int = 0

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            self.calls += 1
            return super().embed_documents(texts)

    counting = Counting(size=6)
    inner = InMemoryVectorStore.from_texts(TEXTS, counting, ids=["0", "1", "2"])
    assert precompute(ChatSamKV(engine=engine), inner) == 3 and counting.calls == 1
    store = ChunkKVVectorStore(inner, engine)
    assert precompute(engine, store) == 3 and counting.calls == 1
    store.delete(["0"])
    assert not cached(engine, TEXTS[0]) and len(engine.store) == 2


def test_precompute_takes_texts_documents_and_ids(engine: SamKVEngine) -> None:
    inner = InMemoryVectorStore.from_texts(TEXTS, embeddings(), ids=["0", "1", "2"])
    with pytest.raises(SamKVError, match="pass ids="):
        precompute(engine, Opaque(inner))
    assert precompute(engine, Opaque(inner), ids=["0"]) == 1
    assert precompute(engine, [TEXTS[1]]) == precompute(engine, documents(c=TEXTS[2])) == 1
    assert len(engine.store) == 3


def test_a_model_that_is_retried_or_bound_caches_as_it_does_itself(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine)
    for number, wrapped in enumerate((llm.with_retry(), llm.bind(stop=["."]), llm.with_fallbacks([llm]))):
        ChunkKVVectorStore(InMemoryVectorStore(embeddings()), wrapped).add_texts([TEXTS[number]])
    assert all(cached(engine, text) for text in TEXTS)


@pytest.mark.parametrize("given", ["bundled", None, FakeListChatModel(responses=["a"])])
def test_what_caches_no_chunks_is_refused(given: Any) -> None:
    with pytest.raises(SamKVError, match="by a ChatSamKV or a SamKVEngine, not by a"):
        ChunkKVVectorStore(InMemoryVectorStore(embeddings()), given).add_texts(TEXTS)
    with pytest.raises(SamKVError, match="by a ChatSamKV or a SamKVEngine, not by a"):
        precompute(given, TEXTS)


def test_what_is_no_vector_store_is_refused(engine: SamKVEngine) -> None:
    with pytest.raises(SamKVError, match="wraps a vector store, not a str"):
        ChunkKVVectorStore("store", engine)  # type: ignore[arg-type]
