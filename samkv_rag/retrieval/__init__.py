"""Folders in, passages out: the retrieval that comes with the command line.

Loading, splitting and the vector search are LlamaIndex's, over faiss-cpu; this package adds what a command line
needs around them: ingestion that is idempotent by content, an index that survives a kill at any point, and
offline embeddings. Nothing else in `samkv_rag` imports it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from samkv_rag.retrieval.errors import MissingExtra, RetrievalError

if TYPE_CHECKING:
    from samkv_rag.retrieval.folder import IngestPlan, IngestReport, ingest_folder
    from samkv_rag.retrieval.index import ChunkIndex, Passage

_NEEDED = (
    "llama_index.core",
    "llama_index.readers.file",
    "llama_index.vector_stores.faiss",
    "faiss",
    "sklearn",
    "filelock",
    "bs4",
    "markdown_it",
    "pypdf",
)


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:
        return True


_missing = [name for name in _NEEDED if _is_missing(name)]
if _missing:
    raise MissingExtra(
        f"Folder ingestion needs what is not installed ({', '.join(_missing)}): pip install 'samkv-rag[cli]'"
    )

_HOMES = {
    "IngestPlan": "folder",
    "IngestReport": "folder",
    "ingest_folder": "folder",
    "ChunkIndex": "index",
    "Passage": "index",
}

__all__ = ["ChunkIndex", "IngestPlan", "IngestReport", "MissingExtra", "Passage", "RetrievalError", "ingest_folder"]


def __getattr__(name: str) -> Any:
    """Import on first use: a question does not need the readers, which take seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
