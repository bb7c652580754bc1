"""SamKV for LlamaIndex.

The integration of this release re-exports the engine: `SamKVEngine`, its method `SamKV` and the `ChunkKVStore`, to be
called with the texts of retrieved nodes. The LLM class for LlamaIndex lands in the next version.
"""

from samkv_rag import ChunkKVStore, SamKV, SamKVEngine

__all__ = ["ChunkKVStore", "SamKV", "SamKVEngine"]
