"""What can go wrong in a store. Every message says what happened and what to do about it."""

from __future__ import annotations

from samkv_rag.errors import SamKVError


class StoreError(SamKVError, RuntimeError):
    """Anything the store cannot do; the message is a sentence that names the remedy."""


class EntryError(StoreError):
    """Something is wrong with one entry; `key` names it, `reason` says what."""

    what = "cannot be used"

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"Chunk cache {self.key} {self.what}: {self.reason}. Compute the chunk again and put it."


class MissingEntry(EntryError):
    """The store holds no such entry: it was never put, or was deleted or evicted, perhaps by another process."""

    what = "is not in the store"


class DamagedEntry(EntryError):
    """The entry's bytes are not the ones that were written; `put` replaces them."""

    what = "is damaged"


class StoreReadOnly(StoreError):
    """The folder may only be read here: what is in it can be used, and nothing can be changed."""

    def __init__(self, folder: object) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return (
            f"The store {self.folder} may only be read here, so nothing can be stored, released or removed in it: "
            "let this user write to the folder and all that is in it, or use another folder."
        )


class StoreFull(StoreError):
    """There is no room, on the disk or within `max_bytes`. Nothing was stored and the store remains usable."""
