"""The passages of all ingested files: a LlamaIndex vector index over faiss, with a manifest of what came from where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.index_store import SimpleIndexStore
from llama_index.vector_stores.faiss import FaissMapVectorStore

from samkv_rag.prompt.checks import require_text
from samkv_rag.retrieval import generations
from samkv_rag.retrieval.embedding import HashingEmbedding, open_embedding
from samkv_rag.retrieval.errors import RetrievalError
from samkv_rag.retrieval.follow import follow_ups, merge

_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, RuntimeError, AssertionError)
"""What reading the files of an index raises where these are damaged."""
FORMAT = 1
INSERTED = 256
"""How many chunks are embedded before their vectors, lists of numbers until then, are packed into the index."""
SECOND_LOOK = 3
"""One in this many passages is left to the second look (see `follow`)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all chunks of an index have in common; if any of it changes, every file is ingested again."""

    model: str
    fingerprint: str
    chunk_size: int
    embed: str
    format: int = FORMAT
    kv_dtype: str = "model"


@dataclass(frozen=True, slots=True)
class Entry:
    """What came of one file: the digest of its bytes, its nodes in order, their store keys and total tokens."""

    digest: str
    nodes: tuple[str, ...]
    keys: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of text and its place; `score` is None for a neighbour that was included with a hit."""

    path: str
    position: int
    text: str
    score: float | None = field(default=None, compare=False)


@dataclass
class Manifest:
    """Which files are in the index; `stale` are store keys to release, by owner, once this manifest is current."""

    settings: Settings
    documents: dict[str, Entry] = field(default_factory=dict)
    stale: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a generation."""
        raw = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        documents = {
            path: Entry(e["digest"], tuple(e["nodes"]), tuple(e["keys"]), e["tokens"])
            for path, e in raw["documents"].items()
        }
        return cls(Settings(**raw["settings"]), documents, raw["stale"])

    def write(self, folder: Path) -> None:
        """Put the manifest into a generation that is being written."""
        (folder / "manifest.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


class _FaissStore(FaissMapVectorStore):
    """A FaissMapVectorStore that numbers new vectors on from the highest number given. The original uses the *count* of
    vectors, which after a deletion is the number of another one."""

    def __init__(self, faiss_index: Any) -> None:
        super().__init__(faiss_index=faiss_index)

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:
        """Add the vectors of `nodes` under new numbers; returns the ids of the nodes."""
        first = max(self._faiss_id_to_node_id_map, default=-1) + 1
        numbers = np.arange(first, first + len(nodes), dtype=np.int64)
        vectors = np.array([node.get_embedding() for node in nodes], dtype=np.float32)
        self._faiss_index.add_with_ids(vectors, numbers)
        for number, node in zip(numbers.tolist(), nodes, strict=True):
            self._faiss_id_to_node_id_map[number] = node.id_
            self._node_id_to_faiss_id_map[node.id_] = number
        return [node.id_ for node in nodes]

    def vectors(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All stored vectors, one per row."""
        flat: Any = faiss.downcast_index(self._faiss_index.index)
        return faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)


class ChunkIndex:
    """Chunks of files with their vectors, kept under `root` as generations (see `generations`).

    Changes happen in memory and become visible to others, all at once, with `save`.
    """

    def __init__(self, root: Path, manifest: Manifest, index: VectorStoreIndex, embed: BaseEmbedding) -> None:
        self.root, self.manifest = root, manifest
        self._index, self._embed = index, embed

    @classmethod
    def create(cls, root: Path, settings: Settings) -> ChunkIndex:
        """An empty index; nothing is written before `save`."""
        embed = open_embedding(settings.embed)
        size = embed.dimension if isinstance(embed, HashingEmbedding) else len(embed.get_text_embedding("size"))
        store = _FaissStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(size)))
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex([], storage_context=context, embed_model=embed, insert_batch_size=INSERTED)
        return cls(root, Manifest(settings), index, embed)

    @classmethod
    def open(cls, root: Path) -> ChunkIndex:
        """The current generation; raises RetrievalError if there is none."""
        folder = generations.current(root)
        if folder is None:
            raise RetrievalError(f"Nothing has been ingested into {root.parent}: run samkv-rag ingest FOLDER first.")
        try:
            return cls._read(root, folder)
        except _DAMAGE as error:  # or two writers finished while this process was reading: take the newest
            newest = generations.current(root)
            if newest is None or newest == folder:
                raise generations.damaged(root) from error
            return cls.open(root)

    @classmethod
    def _read(cls, root: Path, folder: Path) -> ChunkIndex:
        generations.verify(folder)
        manifest = Manifest.read(folder)
        embed = open_embedding(manifest.settings.embed)
        context = StorageContext.from_defaults(
            docstore=SimpleDocumentStore.from_persist_path(str(folder / "docstore.json")),
            index_store=SimpleIndexStore.from_persist_path(str(folder / "index_store.json")),
            vector_store=_FaissStore.from_persist_path(str(folder / "vectors.faiss")),
        )
        index = load_index_from_storage(context, embed_model=embed, insert_batch_size=INSERTED)
        assert isinstance(index, VectorStoreIndex)
        return cls(root, manifest, index, embed)

    @property
    def documents(self) -> dict[str, Entry]:
        """The ingested files by path."""
        return self.manifest.documents

    def update(self, gone: Iterable[str], new: Mapping[str, tuple[Entry, Sequence[BaseNode]]]) -> None:
        """Remove the files `gone`, and add files with their chunks, which replace those they had. All at once: each
        removal and each addition writes out the list of all chunks."""
        entries = [self.documents.pop(path, None) for path in (*gone, *new)]
        if old := [node for entry in entries if entry for node in entry.nodes]:
            self._index.delete_nodes(old, delete_from_docstore=True)
        self._index.insert_nodes([node for _, nodes in new.values() for node in nodes])
        self.documents.update((path, entry) for path, (entry, _) in new.items())

    def save(self) -> None:
        """Make this state the current generation; the caller holds the write lock."""
        generations.publish(self.root, self._write)

    def _write(self, folder: Path) -> None:
        context = self._index.storage_context
        context.docstore.persist(str(folder / "docstore.json"))
        context.index_store.persist(str(folder / "index_store.json"))
        self._index.vector_store.persist(str(folder / "vectors.faiss"))
        self.manifest.write(folder)

    def retrieve(self, question: str, top_k: int = 5) -> list[Passage]:
        """`top_k` chunks, or all there are, each preceded by the chunk before it, in document order, no text twice.
        Raises `RetrievalError` for a question that is no text, or less than one chunk."""
        if top_k < 1 or not require_text(question, "The question").strip():
            raise RetrievalError("Ask a question, and for at least one chunk.")
        if not self.documents:
            raise RetrievalError(f"The index in {self.root.parent} is empty: run samkv-rag ingest FOLDER first.")
        store = self._index.vector_store
        assert isinstance(store, _FaissStore)
        vectors = store.vectors()
        top_k = min(top_k, len(vectors))  # faiss makes room for as many as are asked for
        if isinstance(self._embed, HashingEmbedding):
            self._embed.fit(vectors)
        direct = self._search(question, top_k)
        queries = follow_ups(question, direct[0].text) if direct else []
        second = [self._search(query, top_k) for query in queries]
        chosen = merge(direct[: top_k - top_k // SECOND_LOOK], [*second, direct], top_k)
        return _in_order(chosen + self._neighbours(chosen))

    def _search(self, text: str, top_k: int) -> list[Passage]:
        hits = self._index.as_retriever(similarity_top_k=top_k).retrieve(text)
        return [_passage(hit.node, hit.score) for hit in hits]

    def _neighbours(self, passages: Iterable[Passage]) -> list[Passage]:
        """The chunk before each passage: it often names the subject of a fact."""
        ids = [self.documents[p.path].nodes[p.position - 1] for p in passages if p.position]
        return [_passage(node) for node in self._index.docstore.get_nodes(ids)]


def _passage(node: BaseNode, score: float | None = None) -> Passage:
    return Passage(node.metadata["path"], node.metadata["position"], node.get_content().strip(), score)


def _in_order(passages: Iterable[Passage]) -> list[Passage]:
    """By file and position; of the same place or the same text only one is kept, preferably a scored one."""
    best_first = sorted(passages, key=lambda p: (p.score is None, -(p.score or 0.0)))
    unique: dict[str, Passage] = {}
    for passage in best_first:
        unique.setdefault(passage.text, passage)
    return sorted(unique.values(), key=lambda p: (p.path, p.position))
