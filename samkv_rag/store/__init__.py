"""Chunk caches by key: summaries that selection reads, and K/V of which only the requested blocks are read.

`ChunkKVStore` is the class to use. On disk it holds two safetensors files per entry, checksummed block by block, and a
catalogue that can be rebuilt from them. The store knows nothing about models: it keeps what it is given.
"""

from samkv_rag.store.chunk_store import ChunkKVStore
from samkv_rag.store.errors import DamagedEntry, EntryError, MissingEntry, StoreError, StoreFull, StoreReadOnly
from samkv_rag.store.keys import chunk_key
from samkv_rag.store.layout import estimate_bytes
from samkv_rag.store.quantise import StoredBlocks
from samkv_rag.store.reports import PruneReport, StoreStats

__all__ = [
    "ChunkKVStore",
    "DamagedEntry",
    "EntryError",
    "MissingEntry",
    "PruneReport",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreStats",
    "StoredBlocks",
    "chunk_key",
    "estimate_bytes",
]
