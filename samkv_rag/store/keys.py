"""The name of an entry: a digest of everything its bytes depend on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

_SAFE = re.compile(r"[0-9a-z][0-9a-z_-]{1,127}")


def chunk_key(token_ids: Sequence[int], fingerprint: str, namespace: str) -> str:
    """The store key (40 hex digits) of a chunk with these tokens, for the model `fingerprint`, in `namespace`.

    Equal arguments give equal keys in every process. Each part is preceded by its length, so that no two
    different triples give the same bytes.
    """
    digest = hashlib.blake2b(digest_size=20, person=b"samkv-chunk-key1")
    ids = np.asarray(token_ids, dtype="<i8").tobytes()
    for part in (fingerprint.encode("utf-8", "surrogatepass"), namespace.encode("utf-8", "surrogatepass"), ids):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def is_key(key: object) -> bool:
    """Whether `key` can name an entry: 2 to 128 of 0-9 a-z _ -, so that it is a file name on every system."""
    return isinstance(key, str) and _SAFE.fullmatch(key) is not None


def check_key(key: str) -> None:
    """Raise ValueError unless `key` can name an entry."""
    if not is_key(key):
        raise ValueError(f"{key!r} cannot name a store entry: use chunk_key(), or 2 to 128 characters of 0-9 a-z _ -.")
