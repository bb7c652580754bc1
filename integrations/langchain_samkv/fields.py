"""The chat model's fields and the engine behind it."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.language_models import BaseChatModel
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from langchain_samkv.engines import ChatEngines, fields_of
from langchain_samkv.requests import DEFAULT_MAX_TOKENS
from samkv_rag import SamKVEngine
from samkv_rag.engines import own_method, require_keep, require_known, require_same
from samkv_rag.methods import Method

DEFAULTS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "timeout", "keep", "chat_template_kwargs")
"""The fields that a call may override, apart from the method."""

MEANINGLESS = {"api_key", "max_retries"}
"""Keywords that LangChain passes to every model and that mean nothing to one in this process."""


class SamKVFields(BaseChatModel):
    """What a `ChatSamKV` is made of. Constructing one loads nothing."""

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True)

    model: Any = Field(default="bundled", validation_alias=AliasChoices("model", "model_name"))
    """"bundled", a hub id, a folder, a GGUF file, or a loaded transformers model."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """The tokenizer of a loaded model."""
    temperature: float | None = 0.0
    """0 is greedy."""
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """The longest answer, in tokens."""
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] | str | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    """Texts that end the answer; they are cut off."""
    timeout: float | None = None
    """Seconds after which a call raises `TimeoutError` and releases the model."""
    streaming: bool = False
    kv_store: Any = "./kv"
    """Where chunk caches live: a folder, ":memory:" or a `ChunkKVStore`."""
    kv_dtype: str = "model"
    """How they are stored: as the model computes them, or "bf16", "fp16", "int8", "fp8", "int4"."""
    method: Any = None
    """How caches are used: "full" (not at all), another method's name, or a method object. None or "samkv":
    `SamKV()`, or the given engine's."""
    keep: float | None = None
    """Chosen chunk tokens / chunk tokens: these are recomputed, and with `rest="drop"` only these are kept. None: the
    method's own."""
    namespace: str = "default"
    """Caches are shared within a namespace and never across; give every tenant its own."""
    min_kept_tokens: int = Field(default=256, ge=0)
    """The fewest chunk tokens of a prompt that a method with `keep` chooses; if there are fewer, all."""
    device_map: Any = None
    dtype: Any = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keywords for transformers' `from_pretrained`."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More variables for the model's chat template: `{"enable_thinking": False}` makes Qwen3 answer at once."""
    given_engine: SamKVEngine | None = Field(default=None, alias="engine", exclude=True, repr=False)

    shared_engines: ChatEngines = Field(default_factory=ChatEngines, exclude=True, repr=False)
    """The engines made so far, shared by copies of this object, such as those for configured calls."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, said: Any) -> Any:
        """Refuse a keyword that is misspelt, or another model's, instead of ignoring it."""
        if isinstance(said, dict):
            require_known(cls.__name__, said, cls.model_fields, cls._aliases() | MEANINGLESS)
        return said

    @classmethod
    def _aliases(cls) -> set[str]:
        """The other names of fields."""
        names = set[str]()
        for field in cls.model_fields.values():
            other = field.validation_alias or field.alias
            names |= {str(name) for name in (other.choices if isinstance(other, AliasChoices) else [other]) if name}
        return names

    @model_validator(mode="after")
    def _as_its_engine(self) -> Self:
        """Set the fields to those of a given engine, except for a name and a method of this object's own. Refuse any
        other setting that differs from the engine's, and `keep` for a method that has none."""
        if self.given_engine is not None:
            said = {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
            require_same(self.given_engine, **said)
            own = self.model_fields_set & {"model", "method"}
            for name, value in fields_of(self.given_engine).items():
                if name not in own:
                    setattr(self, name, value)
        require_keep(self.keep, self.method, self.given_engine)
        return self

    # -- the engine --------------------------------------------------------------------------------------------

    @property
    def engine(self) -> SamKVEngine:
        """The engine, made on first use; it loads the model when it first needs it."""
        return self._engine(self.model_name)

    @property
    def model_name(self) -> str:
        """The model's name."""
        name = self.model if isinstance(self.model, str) else getattr(self.model, "name_or_path", "")
        return str(name or "model")

    def _engine(self, name: str) -> SamKVEngine:
        """The engine of this object's model, or of another one that a call names, which shares the store."""
        if name != self.model_name:
            other = {**self._settings, "model": name, "tokenizer": None, "store": self.engine.store}
            return self.shared_engines.get(other, self.engine.method)
        if self.given_engine is None:
            return self.shared_engines.get(self._settings, self.method)
        own = {name: getattr(self, name) for name in ("namespace", "min_kept_tokens", "kv_dtype", "kv_store")}
        require_same(self.given_engine, **own)  # a copy may have been given others
        return self.given_engine

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.model, "tokenizer": self.tokenizer, "store": self.kv_store, "namespace": self.namespace,
            "min_kept_tokens": self.min_kept_tokens, "device_map": self.device_map, "dtype": self.dtype,
            "model_kwargs": self.model_kwargs, "kv_dtype": self.kv_dtype,
        }  # fmt: skip

    @property
    def _own_method(self) -> str | Method | None:
        """The method of this object's calls: not its engine's, which a copy with another method may have made."""
        return own_method(self.method, self.given_engine)
