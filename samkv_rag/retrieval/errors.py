"""What ingestion and retrieval raise; each text names the remedy."""

from __future__ import annotations

from samkv_rag.errors import SamKVError


class RetrievalError(SamKVError):
    """Ingestion or retrieval cannot go on."""


class MissingExtra(RetrievalError, ImportError):
    """A package of the `cli` extra is not installed."""


class UnreadableFile(RetrievalError):
    """One file gave no text; the rest of the folder is not affected."""


class EmptyFile(UnreadableFile):
    """A file that was read and has no text: what was ingested from it before is out of date."""
