"""The engines behind a chat model, which its copies share: LangChain makes a copy for every configured call."""

from __future__ import annotations

from typing import Any

from langchain_samkv.messages import Roles
from samkv_rag import SamKVEngine
from samkv_rag.engines import Engines, settings_of


class ChatEngines(Engines):
    """Engines and what their chat templates can carry."""

    def __init__(self) -> None:
        super().__init__()
        self._roles: dict[SamKVEngine, Roles] = {}

    def roles(self, engine: SamKVEngine) -> Roles:
        """The roles that the chat template of an engine's model can carry, determined once."""
        with self._making:
            if engine not in self._roles:
                self._roles[engine] = Roles.of(engine.tokenizer)
            return self._roles[engine]


def fields_of(engine: SamKVEngine) -> dict[str, Any]:
    """The fields of a chat model over this engine."""
    return {**settings_of(engine), "model": engine.source.name, "method": engine.method}
