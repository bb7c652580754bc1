"""`ChunkKVVectorStore` of LlamaIndex over real vector stores: caches are added, read, replaced and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from llama_index.llms.samkv import ChunkKVStore, ChunkKVVectorStore, SamKVLLM, precompute_index
from llama_index.llms.samkv.ingest import nodes_in
from tests.integrations.llama_index.conftest import settings
from tests.integrations.llama_index.kit import TEXTS, documents, make_engine, make_llm, nodes
from tests.integrations.stores.conftest import WHY, Place
from tests.integrations.stores.embeddings import SIZE, WordVectors

QUESTION = "From which platform does the night train to Turin leave?"
TRAIN = TEXTS[3]


class Embedding(BaseEmbedding):
    """The framework's side of `WordVectors`."""

    _vectors: WordVectors = PrivateAttr(default_factory=WordVectors)

    @property
    def embedded(self) -> list[str]:
        return self._vectors.embedded

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vectors.of(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors.of(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vectors.of(query)


# -- the stores ----------------------------------------------------------------------------------------------------


def faiss(place: Place) -> BasePydanticVectorStore:
    library = pytest.importorskip("faiss", reason=WHY)
    kind = pytest.importorskip("llama_index.vector_stores.faiss", reason=WHY).FaissMapVectorStore
    file = place.folder / "index" / "default__vector_store.json"  # where a storage context persists it
    if file.exists():
        return kind.from_persist_path(str(file))
    return kind(faiss_index=library.IndexIDMap2(library.IndexFlatIP(SIZE)))


def chroma(place: Place) -> BasePydanticVectorStore:
    library = pytest.importorskip("chromadb", reason=WHY)
    kind = pytest.importorskip("llama_index.vector_stores.chroma", reason=WHY).ChromaVectorStore
    client = library.PersistentClient(str(place.folder / "chroma"), library.Settings(anonymized_telemetry=False))
    return kind(chroma_collection=client.get_or_create_collection(place.table))


def qdrant(place: Place) -> BasePydanticVectorStore:
    library = pytest.importorskip("qdrant_client", reason=WHY)
    kind = pytest.importorskip("llama_index.vector_stores.qdrant", reason=WHY).QdrantVectorStore
    client = library.QdrantClient(path=str(place.folder / "qdrant"))
    place.close.append(client.close)
    return kind(client=client, collection_name=place.table)


def postgres(place: Place) -> BasePydanticVectorStore:
    kind = pytest.importorskip("llama_index.vector_stores.postgres", reason=WHY).PGVectorStore
    where = f"postgres@/postgres?host={place.database()}"
    store = kind(
        connection_string=f"postgresql+psycopg2://{where}", async_connection_string=f"postgresql+asyncpg://{where}",
        table_name=place.table, embed_dim=SIZE,
    )  # fmt: skip
    place.close.append(lambda: asyncio.run(store.close()))
    return store


STORES = [faiss, chroma, qdrant, postgres]
TEXT_KEEPING = [chroma, qdrant, postgres]


@pytest.fixture
def llm(place: Place) -> Iterator[SamKVLLM]:
    """An LLM whose caches are in a folder; the embedding knows words."""
    made = make_llm(make_engine(store=ChunkKVStore(place.folder / "kv")))
    with settings(made):
        Settings.embed_model = Embedding()
        yield made
    made.engine.close()


def stored(llm: SamKVLLM) -> set[str]:
    """The texts whose caches are in the store."""
    store = llm.engine.store
    return {store.summary(key).text for key in list(store.keys())}


def filled(store: BasePydanticVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(documents(), storage_context=context)


def asked(engine: RetrieverQueryEngine, llm: SamKVLLM) -> tuple[str, int]:
    """The best source of an answer, and how many chunk tokens were in its prompt."""
    before = llm.stats().chunk_tokens
    response = engine.query(QUESTION)
    return response.source_nodes[0].node.get_content(), llm.stats().chunk_tokens - before


def delete(index: VectorStoreIndex, document: str) -> None:
    """Delete a document; `FaissMapVectorStore` knows ids of nodes only, and would silently keep its vectors."""
    known = index.docstore.get_ref_doc_info(document)
    if known is None:
        index.delete_ref_doc(document)
    else:
        index.delete_nodes(known.node_ids, delete_from_docstore=True)


def replace(index: VectorStoreIndex, document: str, text: str) -> None:
    """Put another text in a document's place."""
    if index.docstore.get_ref_doc_info(document) is None:
        index.update_ref_doc(Document(text=text, id_=document))
    else:
        delete(index, document)
        index.insert(Document(text=text, id_=document))


@pytest.mark.parametrize("kind", STORES)
def test_caches_are_read_replaced_and_deleted(kind: Callable[..., Any], place: Place, llm: SamKVLLM) -> None:
    index = filled(ChunkKVVectorStore(kind(place), llm=llm))
    assert stored(llm) == set(TEXTS)
    engine = index.as_query_engine(similarity_top_k=2)
    best, chunk_tokens = asked(engine, llm)
    assert best == TRAIN and chunk_tokens >= len(TRAIN.encode())

    changed = TRAIN.replace("four", "eleven")
    replace(index, "doc3", changed)
    assert stored(llm) == {*TEXTS[:3], changed}
    best, chunk_tokens = asked(engine, llm)
    assert best == changed and chunk_tokens >= len(changed.encode())

    delete(index, "doc3")
    assert stored(llm) == set(TEXTS[:3]) and llm.stats().misses == 0
    assert asked(engine, llm)[0] in TEXTS[:3]


@pytest.mark.parametrize("kind", STORES)
def test_a_reopened_index_finds_its_caches(kind: Callable[..., Any], place: Place, llm: SamKVLLM) -> None:
    first = filled(ChunkKVVectorStore(kind(place), llm=llm))
    first.storage_context.persist(str(place.folder / "index"))
    place.leave()
    llm.engine.close()
    embedded = len(Settings.embed_model.embedded)

    again = make_llm(make_engine(store=ChunkKVStore(place.folder / "kv")))
    with settings(again):
        Settings.embed_model = Embedding()
        store = ChunkKVVectorStore(kind(place), llm=again)
        context = StorageContext.from_defaults(vector_store=store, persist_dir=str(place.folder / "index"))
        index = load_index_from_storage(context)
        best, chunk_tokens = asked(index.as_query_engine(similarity_top_k=2), again)
        assert best == TRAIN and chunk_tokens >= len(TRAIN.encode()) and again.stats().misses == 0
        assert Settings.embed_model.embedded == [QUESTION] and embedded == len(TEXTS)
        delete(index, "doc3")
        assert stored(again) == set(TEXTS[:3])
    again.engine.close()


@pytest.mark.parametrize("kind", TEXT_KEEPING)
def test_a_store_of_texts_is_cached_without_embedding(kind: Callable[..., Any], place: Place, llm: SamKVLLM) -> None:
    plain = kind(place)
    filled(plain)
    assert stored(llm) == set()
    embedded = len(Settings.embed_model.embedded)
    assert len(precompute_index(plain, llm)) == len(TEXTS) and stored(llm) == set(TEXTS)
    index = VectorStoreIndex.from_vector_store(plain)
    assert len(precompute_index(index, llm)) == len(TEXTS)
    assert len(Settings.embed_model.embedded) == embedded
    best, chunk_tokens = asked(index.as_query_engine(similarity_top_k=2), llm)
    assert best == TRAIN and chunk_tokens >= len(TRAIN.encode())


def test_an_index_over_faiss_is_cached_from_its_docstore(place: Place, llm: SamKVLLM) -> None:
    index = filled(faiss(place))
    embedded = len(Settings.embed_model.embedded)
    for source in (index, index.docstore):
        assert len(precompute_index(source, llm)) == len(TEXTS) and stored(llm) == set(TEXTS)
    assert len(Settings.embed_model.embedded) == embedded
    assert asked(index.as_query_engine(similarity_top_k=2), llm)[1] >= len(TRAIN.encode())


def test_a_long_listing_is_whole() -> None:
    """Qdrant's `get_nodes` stops at 9999 unless it is told otherwise."""
    library = pytest.importorskip("qdrant_client", reason=WHY)
    kind = pytest.importorskip("llama_index.vector_stores.qdrant", reason=WHY).QdrantVectorStore
    store, count = kind(client=library.QdrantClient(":memory:"), collection_name="long"), 10_001
    store.add([TextNode(text="x", id_=str(UUID(int=number)), embedding=[1.0]) for number in range(count)])
    assert len(store.get_nodes()) < count == len(nodes_in(store))


def test_bm25_finds_chunks_without_an_embedding(llm: SamKVLLM) -> None:
    retrievers = pytest.importorskip("llama_index.retrievers.bm25", reason=WHY)
    given = nodes()
    precompute_index(given, llm)
    retriever = retrievers.BM25Retriever.from_defaults(nodes=given, similarity_top_k=2)
    best, chunk_tokens = asked(RetrieverQueryEngine.from_args(retriever), llm)
    assert best == TRAIN and chunk_tokens >= len(TRAIN.encode())
    assert Settings.embed_model.embedded == []


@pytest.mark.parametrize("kind", [chroma, postgres])
def test_async_adding_asking_and_deleting(kind: Callable[..., Any], place: Place, llm: SamKVLLM) -> None:
    async def run() -> None:
        inner = kind(place)
        store = ChunkKVVectorStore(inner, llm=llm)
        index = VectorStoreIndex([], storage_context=StorageContext.from_defaults(vector_store=store), use_async=True)
        await index.ainsert_nodes(nodes())
        assert stored(llm) == set(TEXTS)
        response = await index.as_query_engine(similarity_top_k=2).aquery(QUESTION)
        assert response.source_nodes[0].node.get_content() == TRAIN and llm.stats().chunk_tokens >= len(TRAIN.encode())
        await store.adelete_nodes(["node3"])
        assert stored(llm) == set(TEXTS[:3])
        if place.close:
            place.close.clear()
            await inner.close()

    asyncio.run(run())
