"""`ChatSamKV`: a local chat model that answers from chunk caches, as LangChain wants one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, model_validator

from langchain_samkv.answers import ChunkWriter, result_of
from langchain_samkv.described import Described
from langchain_samkv.engines import Engines, Settings, fields_of
from langchain_samkv.messages import converted
from langchain_samkv.requests import DEFAULT_MAX_TOKENS, Request, traced
from langchain_samkv.structured import structured
from langchain_samkv.tools import choice_of
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.methods import Method, resolve_method
from samkv_rag.stream import AnswerStream
from samkv_rag.types import PromptPlan

_DEFAULTS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "timeout", "keep")


class ChatSamKV(Described):
    """A local Hugging Face model that reads retrieved chunks from their caches instead of computing them again.

    Setup:
        `pip install 'samkv-rag[langchain]'`. No key and no server: the model runs in this process.

    Instantiate:
        ```python
        from langchain_samkv import ChatSamKV

        llm = ChatSamKV(
            model="bundled",          # or a hub id, a folder, or a loaded model with tokenizer=
            kv_store="./kv",          # where chunk caches live; ":memory:" keeps none
            temperature=0,
            max_tokens=256,
            # method="samkv", keep=0.15, namespace="default", min_kept_tokens=512, top_p, top_k, seed, stop, timeout
        )
        ```
        Nothing is loaded before the first call. An engine you have already goes in as `engine=`.

    Invoke:
        ```python
        llm.invoke([("system", "Answer from:\\n\\n" + context), ("human", "Where is Lumen Labs based?")])
        ```
        Texts that were cached (`ChunkKVVectorStore`, `precompute`) are found in any message by content.

    Stream:
        ```python
        for chunk in llm.stream("Hello"):
            print(chunk.text, end="")
        ```
        Leaving the loop frees the model within one token.

    Async:
        ```python
        await llm.ainvoke("Hello")
        async for chunk in llm.astream("Hello"):
            print(chunk.text, end="")
        ```
        The model works in a thread of its own; the event loop is never blocked, and a cancelled task frees the model.
        Calls from many tasks or threads are prepared first come first served and decoded together.

    Tool calling:
        ```python
        llm.bind_tools([search], tool_choice="any").invoke("Find the office of Lumen Labs").tool_calls
        llm.with_structured_output(Person).invoke("Ada Lovelace, 36 years old")
        ```
        Calls and structured output are decoded under a grammar: they always fit their schema, whatever the model,
        unless `max_tokens` cuts them off.

    Response metadata:
        ```python
        message.usage_metadata["input_token_details"]["cache_read"]  # prompt tokens that were not computed
        message.response_metadata["samkv"]["kept_tokens"]             # the whole report of the answer
        ```
    """

    model_config = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True)

    model: Any = Field(default="bundled", validation_alias=AliasChoices("model", "model_name"))
    """"bundled", a hub id, a folder, or a loaded transformers model."""
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
    method: Any = "samkv"
    """How caches are used: "samkv", "full" (not at all), another method's name, or a method object."""
    keep: float | None = None
    """Kept chunk tokens / chunk tokens; None is the method's own."""
    namespace: str = "default"
    """Caches are shared within a namespace and never across; give every tenant one."""
    min_kept_tokens: int = 512
    """The fewest chunk tokens of a prompt that a method with `keep` keeps: of fewer, all."""
    device_map: Any = None
    dtype: Any = "auto"
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keywords for transformers' `from_pretrained`."""
    given_engine: SamKVEngine | None = Field(default=None, alias="engine", exclude=True, repr=False)

    shared_engines: Engines = Field(default_factory=Engines, exclude=True, repr=False)
    """The engines made so far: copies of this object, as for configured calls, go on with them."""

    @model_validator(mode="after")
    def _as_its_engine(self) -> ChatSamKV:
        """The fields say what a given engine is; a name and a method of this object's own stay."""
        if self.given_engine is not None:
            own = self.model_fields_set & {"model", "method"}
            for name, value in fields_of(self.given_engine).items():
                if name not in own:
                    setattr(self, name, value)
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
    def _settings(self) -> Settings:
        return {
            "model": self.model, "tokenizer": self.tokenizer, "store": self.kv_store, "namespace": self.namespace,
            "min_kept_tokens": self.min_kept_tokens, "device_map": self.device_map, "dtype": self.dtype,
            "model_kwargs": self.model_kwargs,
        }  # fmt: skip

    @property
    def _own_method(self) -> str | Method | None:
        """The method of this object's calls: not that of its engine, which a copy with another one may have made."""
        return self.method if self.given_engine is not None else resolve_method(self.method or "samkv")

    def explain(self, messages: LanguageModelInput) -> PromptPlan:
        """Where known chunks stand in these messages, and what the engine takes to be the question."""
        roles = self.shared_engines.roles(self.engine)
        return self.engine.plan(converted(self._convert_input(messages).to_messages(), roles))

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own token ids."""
        ids: list[int] = self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    # -- answering ---------------------------------------------------------------------------------------------

    def _start(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, keywords: Mapping[str, Any]
    ) -> tuple[AnswerStream, str, bool]:
        """The running answer, the model's name, and whether the answer may hold tool calls."""
        name = keywords.get("model") or self.model_name
        if not isinstance(name, str):
            raise SamKVError("One call's model is a hub id or a folder; make another ChatSamKV for a loaded model.")
        defaults = {field: getattr(self, field) for field in _DEFAULTS} | {"method": self._own_method}
        request, engine = Request.of(defaults, stop, keywords), self._engine(name)
        stream = request.start(engine, self.shared_engines.roles(engine), messages)
        return stream, name, bool(request.form.tools)

    async def _astart(self, *call: Any) -> tuple[AnswerStream, str, bool]:
        """As `_start`, which may load the tokenizer, in a thread; a cancelled call takes its answer with it."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, *call))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_cancel_started)
            raise

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        stream, name, may_call = self._start(messages, stop, kwargs)
        try:
            return result_of(stream.answer, name, may_call)
        finally:
            stream.cancel()

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        stream, name, may_call = await self._astart(messages, stop, kwargs)
        try:
            return result_of(await stream.wait(), name, may_call)
        finally:
            stream.cancel()

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        stream, name, may_call = self._start(messages, stop, kwargs)
        writer = ChunkWriter(name, may_call)
        try:
            for piece in stream:
                yield from writer.write(piece)
            yield from writer.finish(stream.answer)
        finally:
            stream.cancel()

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:  # fmt: skip
        stream, name, may_call = await self._astart(messages, stop, kwargs)
        writer = ChunkWriter(name, may_call)
        try:
            async for piece in stream:
                for chunk in writer.write(piece):
                    yield chunk
            for chunk in writer.finish(await stream.wait()):
                yield chunk
        finally:
            stream.cancel()

    # -- tools and structure -----------------------------------------------------------------------------------

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], *,
        tool_choice: dict[str, Any] | str | bool | None = None, parallel_tool_calls: bool = False, **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:  # fmt: skip
        """A model that may call `tools`, one call an answer unless `parallel_tool_calls`.

        `tool_choice`: "auto" (words or a call), "any" (a call), the name of a tool, or "none".
        """
        specs = [convert_to_openai_tool(tool) for tool in tools]
        choice = choice_of(tool_choice, [spec["function"]["name"] for spec in specs])
        return self.bind(tools=specs, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, method: str = "json_schema", **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers are objects of `schema` (a class, a typed dictionary or a JSON schema).

        `method`: "json_schema" (the answer is the JSON), "function_calling" (one forced tool call) or "json_mode" (any
        JSON object: the prompt must say which).
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        return structured(self, schema, method, include_raw)

    # -- what LangChain asks about us --------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "samkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on: LangChain's answer caches are keyed by it."""
        fields = (*_DEFAULTS, "namespace", "min_kept_tokens", "model_kwargs")
        return {"model": self.model_name, "method": repr(self.method), **{name: getattr(self, name) for name in fields}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return traced(super()._get_ls_params(stop=stop, **kwargs), stop or self.stop, kwargs, self.model_name)


def _cancel_started(starting: asyncio.Future[tuple[AnswerStream, str, bool]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result()[0].cancel()
