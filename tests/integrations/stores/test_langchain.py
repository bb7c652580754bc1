"""`ChunkKVVectorStore` of LangChain over real vector stores: caches are added, read, replaced and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import VectorStore

from langchain_samkv import ChatSamKV, ChunkKVStore, ChunkKVVectorStore, SamKVEngine, precompute
from tests.integrations.langchain.conftest import roomy_model
from tests.integrations.stores import conftest as stores
from tests.integrations.stores.conftest import WHY
from tests.integrations.stores.embeddings import SIZE, WordVectors
from tests.models import byte_tokenizer

TEXTS = [
    'Lumen Labs was founded in 1998.\n\nIts "office" is in {Harrow}, next to the old mill.',
    "Orchid Freight carries timber from Vell to the southern ports.\nIt owns eleven ships.",
    "The library of Tamsin closes at nine, and at five on Sundays. Café Ω is next door.",
]
SHIPS = TEXTS[1]
QUESTION = "How many ships does Orchid Freight own for its timber?"
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from:\n\n{context}"), ("human", "{input}")])


class WordEmbeddings(WordVectors, Embeddings):
    """The framework's side of `WordVectors`."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.of(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.of(text)


@dataclass
class Place(stores.Place):
    """A place with its embedding and the ids of its texts."""

    embedding: WordEmbeddings = field(default_factory=WordEmbeddings)
    ids: list[str] = field(default_factory=lambda: [str(uuid4()) for _ in TEXTS])


# -- the stores ----------------------------------------------------------------------------------------------------


def faiss(place: Place) -> VectorStore:
    library = pytest.importorskip("faiss", reason=WHY)
    community = pytest.importorskip("langchain_community.vectorstores.faiss", reason=WHY)
    folder = str(place.folder / "faiss")
    if Path(folder).exists():
        store = community.FAISS.load_local(folder, place.embedding, allow_dangerous_deserialization=True)
    else:
        docstore = pytest.importorskip("langchain_community.docstore.in_memory", reason=WHY).InMemoryDocstore()
        store = community.FAISS(place.embedding, library.IndexFlatIP(SIZE), docstore, {})
    place.close.append(lambda: store.save_local(folder))
    return store


def chroma(place: Place) -> VectorStore:
    library = pytest.importorskip("chromadb", reason=WHY)
    kind = pytest.importorskip("langchain_chroma", reason=WHY).Chroma
    client = library.PersistentClient(str(place.folder / "chroma"), library.Settings(anonymized_telemetry=False))
    return kind(place.table, place.embedding, client=client)


def qdrant(place: Place) -> VectorStore:
    library = pytest.importorskip("qdrant_client", reason=WHY)
    kind = pytest.importorskip("langchain_qdrant", reason=WHY).QdrantVectorStore
    client = library.QdrantClient(path=str(place.folder / "qdrant"))
    place.close.append(client.close)
    if not client.collection_exists(place.table):
        client.create_collection(place.table, library.models.VectorParams(size=SIZE, distance="Cosine"))
    return kind(client, place.table, place.embedding)


def postgres(place: Place) -> VectorStore:
    kind = pytest.importorskip("langchain_postgres", reason=WHY).PGVector
    sqlalchemy = pytest.importorskip("sqlalchemy", reason=WHY)
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://postgres@/postgres?host={place.database()}")
    place.close.append(engine.dispose)
    return kind(place.embedding, connection=engine, collection_name=place.table, embedding_length=SIZE)


STORES = [faiss, chroma, qdrant, postgres]


@pytest.fixture
def place(place: stores.Place) -> Place:
    return Place(place.folder, place.database, place.table, place.close)


def opened(place: Place) -> SamKVEngine:
    """An engine over a random model whose caches are in a folder."""
    return SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(chat=True), ChunkKVStore(place.folder / "kv"))


@pytest.fixture
def engine(place: Place) -> Iterator[SamKVEngine]:
    made = opened(place)
    yield made
    made.close()


def stored(engine: SamKVEngine) -> set[str]:
    """The texts whose caches are in the store."""
    return {engine.store.summary(key).text for key in list(engine.store.keys())}


def documents(place: Place) -> list[Document]:
    return [document(id, text) for id, text in zip(place.ids, TEXTS, strict=True)]


def document(id: str, text: str) -> Document:
    return Document(id=id, page_content=text, metadata={"source": "s"})  # Chroma's own `get_by_ids` needs some


def chain_over(retriever: BaseRetriever, engine: SamKVEngine) -> Any:
    join = RunnableLambda(lambda found: "\n\n".join(document.page_content for document in found))
    llm = ChatSamKV(engine=engine, max_tokens=4)
    return {"context": retriever | join, "input": RunnablePassthrough()} | PROMPT | llm


def tokens_found(chain: Any) -> int:
    """How many chunk tokens were in the prompt of an answer."""
    return int(chain.invoke(QUESTION).response_metadata["samkv"]["chunk_tokens"])


@pytest.mark.parametrize("kind", STORES)
def test_caches_are_read_replaced_and_deleted(kind: Callable[..., Any], place: Place, engine: SamKVEngine) -> None:
    store = ChunkKVVectorStore(kind(place), engine)
    store.add_documents(documents(place), ids=place.ids)
    assert stored(engine) == set(TEXTS)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert [document.page_content for document in retriever.invoke(QUESTION)] == [SHIPS]
    assert tokens_found(chain_over(retriever, engine)) == len(SHIPS.encode())

    changed = SHIPS.replace("eleven", "twelve")
    if kind is faiss:  # it has no upsert: an id that is there already is an error
        store.delete([place.ids[1]])
    store.add_documents([document(place.ids[1], changed)], ids=[place.ids[1]])
    assert stored(engine) == {TEXTS[0], changed, TEXTS[2]}
    assert tokens_found(chain_over(retriever, engine)) == len(changed.encode())

    store.delete([place.ids[1]])
    assert stored(engine) == {TEXTS[0], TEXTS[2]}
    assert retriever.invoke(QUESTION)[0].page_content in (TEXTS[0], TEXTS[2])


def test_chroma_deletes_by_metadata(place: Place, engine: SamKVEngine) -> None:
    store = ChunkKVVectorStore(chroma(place), engine)
    sources = [{"source": "a"}, {"source": "b"}, None]
    store.add_texts(TEXTS, sources, ids=place.ids)
    store.delete(where={"source": "b"})
    assert stored(engine) == {TEXTS[0], TEXTS[2]}


@pytest.mark.parametrize("kind", STORES)
def test_a_reopened_store_finds_its_caches(kind: Callable[..., Any], place: Place, engine: SamKVEngine) -> None:
    ChunkKVVectorStore(kind(place), engine).add_documents(documents(place), ids=place.ids)
    place.leave()
    engine.close()
    place.embedding.embedded.clear()

    again = opened(place)
    store = ChunkKVVectorStore(kind(place), again)
    message = chain_over(store.as_retriever(search_kwargs={"k": 1}), again).invoke(QUESTION)
    report = message.response_metadata["samkv"]
    assert report["chunk_tokens"] == len(SHIPS.encode()) and not report["misses"]
    assert not set(TEXTS) & set(place.embedding.embedded)
    store.delete([place.ids[1]])
    assert stored(again) == {TEXTS[0], TEXTS[2]}
    again.close()


@pytest.mark.parametrize("kind", STORES)
def test_an_existing_store_is_cached_without_embedding(
    kind: Callable[..., Any], place: Place, engine: SamKVEngine
) -> None:
    inner = kind(place)
    inner.add_documents(documents(place), ids=place.ids)
    assert stored(engine) == set()
    place.embedding.embedded.clear()
    assert precompute(engine, inner) == len(TEXTS) and stored(engine) == set(TEXTS)
    assert precompute(engine, inner, ids=place.ids[:1]) == 1
    assert place.embedding.embedded == []
    store = ChunkKVVectorStore(inner, engine)
    assert tokens_found(chain_over(store.as_retriever(search_kwargs={"k": 1}), engine)) == len(SHIPS.encode())
    store.delete([place.ids[1]])
    assert stored(engine) == {TEXTS[0], TEXTS[2]}


def test_bm25_finds_chunks_without_an_embedding(place: Place, engine: SamKVEngine) -> None:
    retrievers = pytest.importorskip("langchain_community.retrievers", reason=WHY)
    pytest.importorskip("rank_bm25", reason=WHY)
    precompute(engine, documents(place))
    retriever = retrievers.BM25Retriever.from_documents(documents(place), k=1)
    assert retriever.invoke(QUESTION)[0].page_content == SHIPS
    assert tokens_found(chain_over(retriever, engine)) == len(SHIPS.encode())


@pytest.mark.parametrize("kind", [faiss, chroma, qdrant])
def test_async_adding_asking_and_deleting(kind: Callable[..., Any], place: Place, engine: SamKVEngine) -> None:
    async def run() -> None:
        store = ChunkKVVectorStore(kind(place), engine)
        await store.aadd_documents(documents(place), ids=place.ids)
        chain = chain_over(store.as_retriever(search_kwargs={"k": 1}), engine)
        message = await chain.ainvoke(QUESTION)
        assert message.response_metadata["samkv"]["chunk_tokens"] == len(SHIPS.encode())
        await store.adelete([place.ids[1]])
        assert stored(engine) == {TEXTS[0], TEXTS[2]}

    asyncio.run(run())
