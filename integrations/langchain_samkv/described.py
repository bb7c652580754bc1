"""What LangChain needs from the model besides answers: how to save it, and what it can do."""

from __future__ import annotations

import asyncio
from os import PathLike
from typing import Any, Self

from langchain_core.language_models import ModelProfile
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.outputs import LLMResult

from langchain_samkv.fields import DEFAULTS, SamKVFields
from samkv_rag import SamKVError
from samkv_rag.types import text_digest


class Described(SamKVFields):
    """A chat model that is saved by its fields (`langchain_core.load.dumps`) when they are all plain.

    They hold no secrets: with `model_kwargs`, among which may be a token, a model is not saved, nor is one with a
    tokenizer of its own. `loads` with `allowed_objects=[ChatSamKV]` and `valid_namespaces=["langchain_samkv"]`
    restores the model; it opens the same cache store.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Save the fields; a loaded model, an engine, a store or a method given as an object cannot be saved."""
        given = [getattr(self, name) for name in ("model", "method", "kv_store", "device_map", "dtype")]
        plain = all(value is None or isinstance(value, str | int | dict) for value in given)
        plain = plain and self.tokenizer is None and not self.model_kwargs
        return super().to_json() if plain and self.given_engine is None else self.to_json_not_implemented()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # a model is never copied: copies share the engine

    def __getstate__(self) -> dict[Any, Any]:
        named = isinstance(self.model, str | PathLike) and isinstance(self.kv_store, str | PathLike)
        if self.given_engine is not None or not named:
            raise SamKVError(
                "A ChatSamKV over a loaded model, an engine or an open store cannot be sent to another process; name "
                "its model and the folder of its store."
            )
        return super().__getstate__()

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on, as far as it is known without loading anything."""
        objects = {name: repr(getattr(self, name)) for name in ("device_map", "dtype")}
        objects["method"] = repr(self._own_method)
        fields = (*DEFAULTS, "namespace", "min_kept_tokens", "kv_dtype")
        secret = text_digest(repr(sorted(self.model_kwargs.items()))) if self.model_kwargs else ""
        named = {name: getattr(self, name) for name in fields}
        return {"model": self.model_name, **objects, **named, "model_kwargs": secret}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The key of LangChain's answer caches: all that an answer depends on besides messages and stored chunks."""
        params = {**self._identifying_params, "identity": self._identity(), **kwargs}
        return str(sorted({**params, "stop": self.stop if stop is None else stop}.items()))

    def _identity(self) -> str:
        """What tells models of the same name apart: the tokenizer's name or, for objects, their contents."""
        if self.given_engine is None and isinstance(self.model, str) and isinstance(self.tokenizer, str | None):
            return repr(self.tokenizer)
        engine = self.engine
        template = getattr(engine.tokenizer, "chat_template", None)
        return f"{engine.fingerprint} {template} {sorted(engine.chat_template_kwargs.items())}"

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """Like the base class's, whose answer cache asks for the identity: this is found first, in a thread."""
        await asyncio.to_thread(self._identity)
        return await super().agenerate(*args, **kwargs)

    def _resolve_model_profile(self) -> ModelProfile:
        """Text only; tools and structured output for any model, by grammar. The window of a loaded model is known."""
        profile = ModelProfile(
            text_inputs=True, image_inputs=False, audio_inputs=False, video_inputs=False, pdf_inputs=False,
            text_outputs=True, image_outputs=False, audio_outputs=False, video_outputs=False, reasoning_output=True,
            tool_calling=True, tool_choice=True, tool_call_streaming=True, structured_output=True, open_weights=True,
        )  # fmt: skip
        positions = _positions(self.model)
        return profile if positions is None else {**profile, "max_input_tokens": positions}


def _positions(model: Any) -> int | None:
    """The positions of a loaded model. A name is not looked up: making a chat model loads nothing."""
    config = getattr(model, "config", None)
    found = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    return int(found) if found else None
