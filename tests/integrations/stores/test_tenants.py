"""Tenants share a folder of caches and, often, the ids of documents: what one deletes, the other keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore

from langchain_samkv import ChunkKVVectorStore
from llama_index.llms.samkv import ChunkKVVectorStore as NodeStore
from samkv_rag import ChunkKVStore, SamKVEngine
from tests.integrations.llama_index.kit import TEXTS, make_engine

DOCUMENT = TEXTS[2]


@pytest.fixture
def engines(tmp_path: Path) -> list[SamKVEngine]:
    return [make_engine(store=ChunkKVStore(tmp_path), namespace=name) for name in ("default", "ada", "a/b%")]


def cached(engines: list[SamKVEngine]) -> list[int]:
    return [len([*engine.store.keys(engine.namespace)]) for engine in engines]


def test_documents_of_langchain(engines: list[SamKVEngine]) -> None:
    stores = [ChunkKVVectorStore(InMemoryVectorStore(DeterministicFakeEmbedding(size=8)), llm=e) for e in engines]
    for number, store in enumerate(stores):
        store.add_texts([DOCUMENT], ids=["handbook"])
        assert cached(engines) == [int(other <= number) for other in range(3)]
    for number, store in enumerate(stores):
        store.delete(["handbook"])
        assert cached(engines) == [int(other > number) for other in range(3)]
    assert engines[0].store.owned() == []


@pytest.mark.parametrize("end", ["clear", "delete"])
def test_nodes_of_llama_index(engines: list[SamKVEngine], end: str) -> None:
    stores = [NodeStore(SimpleVectorStore(), llm=engine) for engine in engines]
    for number, store in enumerate(stores):
        store.add([TextNode(id_="n", text=DOCUMENT, embedding=[1.0, 0.0], ref_doc_id="garden")])
        assert cached(engines) == [int(other <= number) for other in range(3)]
    for number, store in enumerate(stores):
        store.clear() if end == "clear" else store.delete("")
        assert cached(engines) == [int(other > number) for other in range(3)]
    assert engines[0].store.owned() == []
