"""Models that change while they run: transformers swaps the frequencies of longrope in the model itself, by the longest
position of each call. Their passes run one at a time, whichever engine they are of."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[Any, AbstractContextManager[Any]] = WeakKeyDictionary()
_guard = threading.Lock()


def rotary_of(model: Any) -> Any:
    """The model's rotary embedding, or None."""
    return getattr(model.get_decoder(), "rotary_emb", None)


def rope_types(rotary: Any) -> set[str]:
    """The ways in which a rotary embedding spaces its frequencies."""
    kind = getattr(rotary, "rope_type", "default")
    return set(kind.values()) if isinstance(kind, dict) else {kind}


def alone(rotary: Any) -> AbstractContextManager[Any]:
    """Within it nothing else that holds it uses this rotary embedding, if its frequencies are swapped; a thread may
    enter it again."""
    if "longrope" not in rope_types(rotary):
        return nullcontext()
    with _guard:
        return _locks.setdefault(rotary, threading.RLock())
