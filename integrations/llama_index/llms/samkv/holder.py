"""The engine behind an LLM, made on first use and shared by every copy of that LLM."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llama_index.llms.samkv.reuse import Tally
from samkv_rag import SamKVEngine


class EngineHolder:
    """Holds one engine and the totals of what it answered."""

    def __init__(self, engine: SamKVEngine | None = None) -> None:
        self.ready_made = engine is not None
        self.ready = False
        self.tally = Tally()
        self._engine = engine
        self._lock = threading.Lock()

    def get(self, make: Callable[[], SamKVEngine]) -> SamKVEngine:
        """The engine; made by the first caller."""
        with self._lock:
            if self._engine is None:
                self._engine = make()
            return self._engine
