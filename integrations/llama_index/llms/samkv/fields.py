"""The LLM's fields and the engine behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.function_calling import FunctionCallingLLM

from llama_index.llms.samkv.holder import OF_THE_ENGINE, EngineHolder
from llama_index.llms.samkv.tools import supports_tools
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.engines import require_keep, require_known, require_same, settings_of


class SamKVFields(FunctionCallingLLM):
    """What a `SamKVLLM` is made of. Constructing one loads nothing."""

    model_name: str = Field(default="bundled", description='"bundled", a hub id, a folder or a GGUF file.')
    kv_store: str = Field(default="./kv", description='Folder of the chunk caches, or ":memory:".')
    kv_dtype: str = Field(
        default="model", description="How caches are stored: as the model computes, or bf16, fp16, int8, fp8, int4."
    )
    method: Any = Field(
        default=None,
        description="A name or an object; None or 'samkv': SamKV(), or the given engine's.",
    )
    keep: float | None = Field(
        default=None, description="Share of the chunk tokens that is chosen and computed again; None: the method's."
    )
    namespace: str = Field(default="default", description="Caches of one namespace are unknown in all others.")
    max_new_tokens: int = Field(default=256, description="The most tokens of an answer.", gt=0)
    temperature: float = Field(default=0.0, description="0 is greedy.", ge=0)
    top_p: float | None = Field(default=None, description="Sample from the most likely tokens of this total share.")
    top_k: int | None = Field(default=None, description="Sample from this many of the most likely tokens.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: list[str] | None = Field(default=None, description="Texts that end an answer and are cut off.")
    context_window: int | None = Field(default=None, description="Tokens; None: the model's own positions.")
    device_map: Any = Field(default=None, description="A device, a mapping or 'auto'; None: the GPU if there is one.")
    dtype: str = Field(default="auto", description="The model's dtype, such as 'bfloat16'.")
    is_chat_model: bool = Field(default=True, description="Whether prompts go through the model's chat template.")
    is_function_calling_model: bool = Field(default=True, description="Whether agents and programs may offer tools.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="For `from_pretrained`.", exclude=True)
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More variables of the chat template: {'enable_thinking': False} for Qwen3."
    )
    min_kept_tokens: int = Field(
        default=256, description="The fewest chunk tokens of a prompt that a method with `keep` chooses.", ge=0
    )

    _holder: EngineHolder = PrivateAttr()

    def __init__(self, engine: SamKVEngine | None = None, **fields: Any) -> None:
        require_known("SamKVLLM", fields, type(self).model_fields)
        if isinstance(fields.get("kv_store"), Path):
            fields["kv_store"] = str(fields["kv_store"])
        if isinstance(fields.get("stop"), str):
            fields["stop"] = [fields["stop"]]
        if engine is not None:
            own = {name: value for name, value in settings_of(engine).items() if name in OF_THE_ENGINE}
            fields = {**own, **fields}
            require_same(engine, **{name: value for name, value in fields.items() if value is not None})
        super().__init__(**fields)
        self._holder = EngineHolder(engine)
        require_keep(self.keep, self.method, engine)

    @classmethod
    def from_engine(cls, engine: SamKVEngine, **fields: Any) -> Self:
        """An LLM over a ready-made engine, which may serve others too."""
        own = {"model_name": engine.source.name, "kv_store": engine.store.stats().path}
        return cls(engine=engine, **{**own, **fields})

    @classmethod
    def class_name(cls) -> str:
        return "SamKVLLM"

    # -- the model behind it -----------------------------------------------------------------------------------

    @property
    def engine(self) -> SamKVEngine:
        """The engine, made on first use; its model is loaded by the first answer, or by `load()`."""
        return self._holder.get(self._settings, self.method)

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.model_name, "store": self.kv_store, "namespace": self.namespace,
            "device_map": self.device_map, "dtype": self.dtype, "model_kwargs": self.model_kwargs,
            "min_kept_tokens": self.min_kept_tokens, "kv_dtype": self.kv_dtype,
        }  # fmt: skip

    def load(self) -> Self:
        """Load the model now instead of at the first answer; returns the LLM."""
        self.engine.load()
        return self

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, for `Settings.tokenizer`, so that prompts are filled by the right token counts."""
        return self.engine.tokenizer

    @property
    def metadata(self) -> LLMMetadata:
        """What the framework asks for, read from the model's config and tokenizer, without loading its weights."""
        return LLMMetadata(
            context_window=self.context_window or self._positions(),
            num_output=self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self.is_function_calling_model,
            model_name=self.model_name,
        )

    def _positions(self) -> int:
        config = self.engine.source.config
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(positions) if positions else DEFAULT_CONTEXT_WINDOW

    @property
    def _template_has_tools(self) -> bool:
        return supports_tools(getattr(self.tokenizer, "chat_template", None))

    def to_payload(self) -> dict[str, Any]:
        """The payload for traces: no weights, paths or keys, and nothing that must be loaded first."""
        return {
            "class_name": self.class_name(), "model_name": self.model_name, "is_chat_model": self.is_chat_model,
            "max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "namespace": self.namespace,
        }  # fmt: skip

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The fields, for `from_dict`; `not_saved` names those that are no plain data, or may hold secrets."""
        lost = (["model_kwargs"] if self.model_kwargs else []) + (
            [] if isinstance(self.method, str | None) else ["method"]
        )
        data = {name: value for name, value in super().to_dict(**kwargs).items() if name not in lost}
        return data | ({"not_saved": lost} if lost else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The LLM of `to_dict`. Raises `SamKVError` unless `kwargs` has what was not saved."""
        if lost := sorted({*data.get("not_saved", ())} - {*kwargs}):
            names = ", ".join(lost)
            raise SamKVError(f"{names} could not be saved; pass what the LLM had: from_dict(data, {lost[0]}=...).")
        return super().from_dict({name: value for name, value in data.items() if name != "not_saved"}, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # a model is never copied: copies share the engine

    def __getstate__(self) -> dict[str, Any]:
        if self._holder.given is not None:
            raise SamKVError("An LLM over a ready-made engine cannot be sent to another process; name its model.")
        state = dict(super().__getstate__())
        return {**state, "__pydantic_private__": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]
