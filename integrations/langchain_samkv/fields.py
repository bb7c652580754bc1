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
"""The fields that a call may override, the method aside."""

MEANINGLESS = {"api_key", "max_retries"}
"""What LangChain gives every model, and means nothing to one in this process."""


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
    """Seconds after which a call raises `TimeoutError` and lets go of the model."""
    streaming: bool = False
    kv_store: Any = "./kv"
    """Where chunk caches live: a folder, ":memory:" or a `ChunkKVStore`."""
    kv_dtype: str = "model"
    """How they are stored: as the model computes, or "bf16", "fp16", "int8", "fp8", "int4"."""
    method: Any = None
    """How caches are used: "full" (not at all), another method's name, or a method object. None or "samkv":
    `SamKV()`, or that of the engine that was given."""
    keep: float | None = None
    """Chosen chunk tokens / chunk tokens: these are computed again, and with `rest="drop"` these alone stay. None: the
    method's own."""
    namespace: str = "default"
    """Caches are shared within a namespace and never across; give every tenant one."""
    min_kept_tokens: int = 256
    """The fewest chunk tokens of a prompt that a method with `keep` chooses: of fewer, all."""
    device_map: Any = None
    dtype: Any = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords for transformers' `from_pretrained`."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More variables of the model's chat template: `{"enable_thinking": False}` has Qwen3 answer at once."""
    given_engine: SamKVEngine | None = Field(default=None, alias="engine", exclude=True, repr=False)

    shared_engines: ChatEngines = Field(default_factory=ChatEngines, exclude=True, repr=False)
    """The engines made so far: copies of this object, as for configured calls, go on with them."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, said: Any) -> Any:
        """A keyword that is misspelt, or another model's, is not passed over in silence."""
        if isinstance(said, dict):
            require_known(cls.__name__, said, cls.model_fields, cls._aliases() | MEANINGLESS)
        return said

    @classmethod
    def _aliases(cls) -> set[str]:
        """What fields may be called, too."""
        names = set[str]()
        for field in cls.model_fields.values():
            other = field.validation_alias or field.alias
            names |= {str(name) for name in (other.choices if isinstance(other, AliasChoices) else [other]) if name}
        return names

    @model_validator(mode="after")
    def _as_its_engine(self) -> Self:
        """The fields say what a given engine is; a name and a method of this object's own stay. Anything else of an
        engine that is said beside it and that it has otherwise is refused, and so is `keep` for a method without."""
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
        """What the model is called."""
        name = self.model if isinstance(self.model, str) else getattr(self.model, "name_or_path", "")
        return str(name or "model")

    def _engine(self, name: str) -> SamKVEngine:
        """The engine of this object's model, or of one that a call named: that one shares the store."""
        if name != self.model_name:
            other = {**self._settings, "model": name, "tokenizer": None, "store": self.engine.store}
            return self.shared_engines.get(other, self.engine.method)
        return self.given_engine or self.shared_engines.get(self._settings, self.method)

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.model, "tokenizer": self.tokenizer, "store": self.kv_store, "namespace": self.namespace,
            "min_kept_tokens": self.min_kept_tokens, "device_map": self.device_map, "dtype": self.dtype,
            "model_kwargs": self.model_kwargs, "kv_dtype": self.kv_dtype,
        }  # fmt: skip

    @property
    def _own_method(self) -> str | Method | None:
        """The method of this object's calls: not that of its engine, which a copy with another one may have made."""
        return own_method(self.method, self.given_engine)
