"""The engines behind an LLM, made on first use and shared by every copy of that LLM."""

from __future__ import annotations

from typing import Any

from llama_index.llms.samkv.reuse import Tally
from samkv_rag import SamKVEngine
from samkv_rag.engines import Engines, Settings, require_same

OF_THE_ENGINE = ("namespace", "min_kept_tokens", "kv_dtype")
"""The settings that an LLM over a given engine takes from it."""


class EngineHolder(Engines):
    """The given engine, or one for each group of settings, and the totals over all answers.

    `read` holds the engines whose tokenizer and config are known to be loaded.
    """

    def __init__(self, given: SamKVEngine | None = None) -> None:
        super().__init__()
        self.given = given
        self.tally = Tally()
        self.read: set[SamKVEngine] = set()

    def get(self, settings: Settings, method: Any) -> SamKVEngine:
        """The given engine, else the one with these settings; raises `SamKVError` if one of `OF_THE_ENGINE`
        differs from the given engine's."""
        if self.given is None:
            return super().get(settings, method)
        require_same(self.given, **{name: settings[name] for name in OF_THE_ENGINE})
        return self.given
