"""Caches come with nodes and go with them: pipeline steps, vector stores, and indexes that exist already."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, Settings, StorageContext, SummaryIndex, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index.llms.samkv import ChunkKVIngest, ChunkKVStore, ChunkKVVectorStore, SamKVLLM, precompute_index
from samkv_rag import SamKVError
from samkv_rag.store import StoreFull
from tests.integrations.llama_index.kit import TEXTS, documents, make_engine, make_llm, nodes

VECTOR = [1.0, 0.0, 0.0, 0.0]


class Keeping(SimpleVectorStore):
    """A store that keeps texts and hands them out, as Chroma and Qdrant do."""

    stores_text: bool = True
    kept: dict[str, BaseNode] = {}

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.kept = {}

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        self.kept.update({node.node_id: node for node in nodes})
        return super().add(nodes, **kwargs)

    def get_nodes(self, node_ids: list[str] | None = None, filters: Any = None) -> list[BaseNode]:
        wanted = [] if filters is None else filters.legacy_filters()
        fits = lambda node: all(node.metadata.get(one.key) == one.value for one in wanted)  # noqa: E731
        return [node for node in self.kept.values() if fits(node) and (not node_ids or node.node_id in node_ids)]


def stored(llm: SamKVLLM) -> set[str]:
    """The texts whose caches are in the store."""
    store = llm.engine.store
    return {store.summary(key).text for key in list(store.keys())}


def of(document: str, *texts: str, **metadata: Any) -> list[TextNode]:
    """Nodes of a document, embedded."""
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return [
        TextNode(text=text, id_=f"{document}-{i}", relationships=source, embedding=VECTOR, metadata=metadata)
        for i, text in enumerate(texts)
    ]


def test_the_step_stores_the_bodies_and_leaves_the_nodes_alone(llm: SamKVLLM) -> None:
    step = ChunkKVIngest(llm=llm)
    given = documents()
    before = [document.to_dict() for document in given]
    assert step(given) is given and [document.to_dict() for document in given] == before
    assert stored(llm) == {text.strip() for text in TEXTS}
    assert asyncio.run(step.acall(given)) is given


def test_metadata_mode_and_key_choose_the_text(llm: SamKVLLM) -> None:
    ChunkKVIngest(llm=llm, metadata_mode="llm")(documents()[:1])
    assert stored(llm) == {documents()[0].get_content(MetadataMode.LLM).strip()}
    ChunkKVIngest(llm=make_llm(llm.engine), metadata_key="window")([TextNode(text="x", metadata={"window": TEXTS[2]})])
    assert TEXTS[2] in stored(llm)


def test_short_and_empty_texts_are_not_cached(llm: SamKVLLM) -> None:
    ChunkKVIngest(llm=llm)([TextNode(text=""), TextNode(text="  \n "), TextNode(text="Too short.")])
    assert len(llm.engine.store) == 0


def test_the_step_does_not_block_the_event_loop(llm: SamKVLLM) -> None:
    async def ticks() -> int:
        count = 0
        llm.engine._turn.__enter__()
        task = asyncio.create_task(ChunkKVIngest(llm=llm).acall(documents()))
        for _ in range(5):
            await asyncio.sleep(0.01)
            count += not task.done()
        llm.engine._turn.__exit__(None, None, None)
        await task
        return count

    llm.load()
    assert asyncio.run(ticks()) == 5


def test_a_persisted_cache_does_not_skip_a_fresh_store(llm: SamKVLLM, tmp_path: Path) -> None:
    def run(llm: SamKVLLM, cache: IngestionCache) -> None:
        steps = [SentenceSplitter(), ChunkKVIngest(llm=llm), Settings.embed_model]
        IngestionPipeline(transformations=steps, cache=cache).run(documents=documents())

    cache = IngestionCache()
    run(llm, cache)
    cache.persist(str(tmp_path / "cache.json"))
    fresh = make_llm(make_engine())
    run(fresh, IngestionCache.from_persist_path(str(tmp_path / "cache.json")))
    assert stored(fresh) == stored(llm) != set()


def test_the_same_store_is_the_same_step(tmp_path: Path) -> None:
    """The control for the test above: a store that exists already may be skipped."""
    first, again = (ChunkKVIngest(llm=make_engine(store=ChunkKVStore(tmp_path / "kv"))).to_dict() for _ in range(2))
    assert first == again != ChunkKVIngest(llm=make_engine()).to_dict()


def test_worker_processes_are_refused(llm: SamKVLLM) -> None:
    with pytest.raises(SamKVError, match="without num_workers"):
        pickle.dumps([ChunkKVIngest(llm=llm)])
    with pytest.raises(SamKVError, match="send the wrapped store"):
        pickle.dumps(ChunkKVVectorStore(SimpleVectorStore(), llm=llm))
    with pytest.raises(SamKVError, match="SamKVLLM or a SamKVEngine"):
        ChunkKVIngest(llm="samkv")  # type: ignore[arg-type]


# -- the vector store --------------------------------------------------------------------------------------------


def test_an_index_over_the_wrapper_caches_inserts_and_drops_deletions(llm: SamKVLLM) -> None:
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(documents()[:2], storage_context=context)
    assert stored(llm) == set(TEXTS[:2])
    index.insert(documents()[2])
    index.insert_nodes([TextNode(text=TEXTS[3], id_="extra")])
    assert stored(llm) == set(TEXTS)
    index.delete_ref_doc("doc0")
    index.delete_nodes(["extra"])
    assert stored(llm) == set(TEXTS[1:3])
    assert llm.explain(TEXTS[0]).chunk_tokens == 0 and llm.explain(TEXTS[0]).misses == ()
    assert index.as_retriever(similarity_top_k=1).retrieve("harbour")


def test_async_insert_and_delete(llm: SamKVLLM) -> None:
    async def run() -> None:
        store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
        index = VectorStoreIndex([], storage_context=StorageContext.from_defaults(vector_store=store))
        await index.ainsert_nodes([*of("a", TEXTS[0]), *of("b", TEXTS[1])])
        assert stored(llm) == set(TEXTS[:2])
        await store.adelete("a")
        await store.adelete_nodes(["b-0"])
        assert stored(llm) == set()
        await store.async_add(of("c", TEXTS[2]))
        await store.aclear()

    asyncio.run(run())
    assert stored(llm) == set()


def test_a_shared_text_lives_until_its_last_node_goes(llm: SamKVLLM) -> None:
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    other = ChunkKVVectorStore(SimpleVectorStore(), llm=llm, collection="other")
    store.add([*of("a", TEXTS[0], TEXTS[0]), *of("b", f"  {TEXTS[0]}\n")])
    other.add(of("a", TEXTS[0]))
    store.delete_nodes(["a-0"])
    store.delete("a")
    assert stored(llm) == {TEXTS[0]}
    store.clear()
    assert stored(llm) == {TEXTS[0]}
    other.delete("a")
    assert stored(llm) == set()


def test_a_node_that_is_added_again_releases_its_old_text(llm: SamKVLLM) -> None:
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    store.add(of("a", TEXTS[0], TEXTS[1]))
    store.add(of("a", TEXTS[2]))
    assert stored(llm) == {TEXTS[1], TEXTS[2]}
    store.add(of("a", ""))
    assert stored(llm) == {TEXTS[1]}


def test_owners_outlive_the_process(tmp_path: Path) -> None:
    """Another wrapper over the same folder, as after a restart, knows what to drop."""
    for step in ("add", "delete"):
        llm = make_llm(make_engine(store=ChunkKVStore(tmp_path / "kv")))
        store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
        if step == "add":
            store.add([*of("a/b", TEXTS[0]), *of("a", TEXTS[1]), *of("é %", TEXTS[2])])
        else:
            store.delete("a")
            store.delete_nodes(["é %-0"])
            assert stored(llm) == {TEXTS[0]}
        llm.engine.close()


def test_when_adding_fails_nothing_stays(llm: SamKVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SimpleVectorStore):
        def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
            raise ConnectionError("no database")

    llm.precompute([TEXTS[3]])
    store = ChunkKVVectorStore(Broken(), llm=llm)
    for add in (store.add, lambda nodes: asyncio.run(store.async_add(nodes))):
        with pytest.raises(ConnectionError):
            add(of("a", TEXTS[0], TEXTS[3]))
        assert stored(llm) == {TEXTS[3]} and llm.engine.store.owned() == []

    def full(texts: Sequence[str], **options: Any) -> list[str]:
        raise StoreFull("The disk is full.")

    good = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    monkeypatch.setattr(llm.engine, "precompute", full)
    with pytest.raises(StoreFull):
        good.add(of("a", TEXTS[0]))
    assert llm.engine.store.owned() == [] and not good.inner.data.embedding_dict


def test_deletion_by_filter(llm: SamKVLLM, caplog: pytest.LogCaptureFixture) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="year", value=1987)])
    for inner in (Keeping(), SimpleVectorStore()):
        store = ChunkKVVectorStore(inner, llm=llm)
        store.add([*of("a", TEXTS[0], year=1987), *of("b", TEXTS[1], year=2001)])
        store.delete_nodes(filters=filters)
        assert stored(llm) == ({TEXTS[1]} if inner.stores_text else {TEXTS[0], TEXTS[1]})
        assert list(inner.data.embedding_dict) == ["b-0"]
    assert "their caches stay" in caplog.text


@pytest.mark.parametrize("run", ["run", "arun"])
def test_upserts_and_deletions_of_a_pipeline(llm: SamKVLLM, run: str) -> None:
    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), MockEmbedding(embed_dim=4)], vector_store=store,
        docstore=SimpleDocumentStore(), docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )  # fmt: skip

    def ingest(*given: Document) -> None:
        result = getattr(pipeline, run)(documents=list(given))
        if run == "arun":
            asyncio.run(result)

    first, second, third = documents()[:3]
    ingest(first, second)
    assert stored(llm) == set(TEXTS[:2])
    ingest(Document(text=TEXTS[3], id_="doc0"), third)
    assert stored(llm) == {TEXTS[3], TEXTS[2]}


def test_the_wrapper_looks_like_the_wrapped_store(llm: SamKVLLM, tmp_path: Path) -> None:
    inner = Keeping()
    store = ChunkKVVectorStore(inner, llm=llm)
    assert store.stores_text and store.client is None and store.inner is inner
    store.add(of("a", TEXTS[0]))
    assert [node.node_id for node in store.get_nodes()] == ["a-0"]
    store.persist(str(tmp_path / "vectors.json"))
    assert (tmp_path / "vectors.json").exists()


# -- what exists already -----------------------------------------------------------------------------------------


SOURCES: dict[str, Callable[[VectorStoreIndex], Any]] = {
    "index": lambda index: index,
    "docstore": lambda index: index.docstore,
    "nodes": lambda index: list(index.docstore.docs.values()),
    "scored nodes": lambda index: index.as_retriever(similarity_top_k=9).retrieve("x"),
    "texts": lambda index: TEXTS,
}


@pytest.mark.parametrize("source", SOURCES)
def test_an_existing_index_is_cached_without_embedding(llm: SamKVLLM, source: str) -> None:
    index = VectorStoreIndex(nodes())
    given = SOURCES[source](index)
    index._embed_model = Settings._embed_model = None  # type: ignore[assignment]
    keys = precompute_index(given, llm)
    assert len(keys) == len(TEXTS) == len(llm.engine.store)
    assert sorted(precompute_index(given, llm.engine)) == sorted(keys)


def test_what_was_deleted_from_an_index_is_not_cached_again(llm: SamKVLLM) -> None:
    index = VectorStoreIndex.from_documents(documents())
    index.delete_ref_doc("doc0")
    assert len(index.docstore.docs) == len(TEXTS)
    precompute_index(index, llm)
    assert stored(llm) == set(TEXTS[1:])
    precompute_index(SummaryIndex(nodes()), llm)
    assert stored(llm) == set(TEXTS)


def test_an_index_whose_vector_store_keeps_the_texts(llm: SamKVLLM) -> None:
    index = VectorStoreIndex(nodes(), storage_context=StorageContext.from_defaults(vector_store=Keeping()))
    assert not index.docstore.docs and len(precompute_index(index, llm)) == len(TEXTS)
    with pytest.raises(SamKVError, match="pass the docstore or the nodes"):
        precompute_index(SimpleVectorStore(), llm)
    with pytest.raises(SamKVError, match="no nodes in a int"):
        precompute_index(3, llm)  # type: ignore[arg-type]
