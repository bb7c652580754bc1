"""`ChatSamKV`: a local LangChain chat model that answers from chunk caches."""

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

from langchain_samkv.answers import ChunkWriter, Reading, result_of
from langchain_samkv.described import Described
from langchain_samkv.fields import DEFAULTS
from langchain_samkv.messages import converted
from langchain_samkv.requests import Request, traced
from langchain_samkv.structured import structured, whole_calls
from samkv_rag import SamKVError
from samkv_rag.engines import meant
from samkv_rag.prompt.template import Conversation
from samkv_rag.prompt.tools import choice_of, names_of
from samkv_rag.stream import AnswerStream
from samkv_rag.types import PromptPlan


class ChatSamKV(Described):
    """A local Hugging Face model that reads retrieved chunks from their caches instead of computing them again.

    Setup:
        `pip install 'samkv-rag[langchain]'`. No key and no server: the model runs in this process.

    Instantiate:
        ```python
        from langchain_samkv import ChatSamKV

        llm = ChatSamKV(
            model="bundled",          # or a hub id, a folder, or a loaded model with tokenizer=
            kv_store="./kv",          # where chunk caches live; ":memory:": until Python ends
            temperature=0,
            max_tokens=256,
            # method=SamKV(), keep=0.15, namespace, min_kept_tokens=256, kv_dtype="int4",
            # top_p, top_k, seed, stop, timeout
        )
        ```
        Nothing is loaded before the first call. An existing engine is passed as `engine=`.

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
        Calls from many tasks or threads are prepared first come, first served, and decoded together.

    Tool calling:
        ```python
        llm.bind_tools([search], tool_choice="any").invoke("Find the office of Lumen Labs").tool_calls
        llm.with_structured_output(Person).invoke("Ada Lovelace, 36 years old")
        ```
        Calls and structured output are decoded under a grammar: they always fit their schema, whatever the model,
        unless `max_tokens` cuts them off.

    Reasoning:
        ```python
        message = ChatSamKV(model="Qwen/Qwen3-4B").invoke("Why?")
        message.additional_kwargs["reasoning_content"]  # also a block of message.content_blocks
        llm.invoke("Why?", chat_template_kwargs={"enable_thinking": False})  # at once, or as a field of the model
        ```
        What models write between `<think>` tags is not in the text. Forced calls and structured output skip thinking.

    Response metadata:
        ```python
        message.usage_metadata["input_token_details"]["cache_read"]  # prompt tokens that were not computed
        message.response_metadata["samkv"]["kept_tokens"]             # the whole report of the answer
        ```
    """

    # -- what the model sees -----------------------------------------------------------------------------------

    def explain(self, messages: LanguageModelInput) -> PromptPlan:
        """Show where known chunks are in these messages, and what the engine takes to be the question."""
        roles = self.shared_engines.roles(self.engine)
        turns = converted(self._convert_input(messages).to_messages(), roles)
        return self.engine.plan(Conversation(turns, template=self.chat_template_kwargs))

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own token ids."""
        ids: list[int] = self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    # -- answering ---------------------------------------------------------------------------------------------

    def _start(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, keywords: Mapping[str, Any]
    ) -> tuple[AnswerStream, Reading]:
        """Start an answer; returns it, and how to read it."""
        name = keywords.get("model") or self.model_name
        if not isinstance(name, str):
            raise SamKVError("One call's model is a hub id or a folder; make another ChatSamKV for a loaded model.")
        own = self._own_method
        defaults = {field: getattr(self, field) for field in DEFAULTS} | {"method": own}
        said = meant(keywords, own, self.given_engine)
        request, engine = Request.of(defaults, stop, said), self._engine(name)
        thoughts, roles = request.reader(engine), self.shared_engines.roles(engine)
        reading = Reading(name, bool(request.form.tools), thoughts)
        return request.start(engine, roles, messages, thoughts), reading

    async def _astart(self, *call: Any) -> tuple[AnswerStream, Reading]:
        """Run `_start`, which may load the tokenizer, in a thread; a cancelled call cancels its answer."""
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, *call))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_cancel_started)
            raise

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        """What all results of one call have in common: the model's name."""
        return next((output for output in llm_outputs if output), {})

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        stream, reading = self._start(messages, stop, kwargs)
        try:
            return result_of(stream.answer, reading)
        finally:
            stream.cancel()

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        stream, reading = await self._astart(messages, stop, kwargs)
        try:
            return result_of(await stream.wait(), reading)
        finally:
            stream.cancel()

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:  # fmt: skip
        stream, reading = self._start(messages, stop, kwargs)
        writer = ChunkWriter(reading)
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
        stream, reading = await self._astart(messages, stop, kwargs)
        writer = ChunkWriter(reading)
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
        """A model that may call `tools`, one call per answer unless `parallel_tool_calls`.

        `tool_choice`: "auto" (words or a call), "any" (a call), the name of a tool, or "none".
        """
        specs = [convert_to_openai_tool(tool) for tool in tools]
        choice = choice_of(tool_choice, names_of(specs))
        return self.bind(tools=specs, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, method: str = "json_schema", **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers are objects of `schema` (a class, a typed dictionary or a JSON schema).

        `method`: "json_schema" (the answer is the JSON), "function_calling" (one forced tool call) or "json_mode" (any
        JSON object: the prompt must say which).
        """
        if method == "function_calling":
            return whole_calls(super().with_structured_output(schema, **kwargs), include_raw)
        keywords = {name: value for name, value in kwargs.items() if name != "strict"}  # it always is
        return structured(self, schema, method, include_raw, keywords)

    # -- what LangChain asks about the model -------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "samkv"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return traced(super()._get_ls_params(stop=stop, **kwargs), stop or self.stop, kwargs, self.model_name)


def _cancel_started(starting: asyncio.Future[tuple[AnswerStream, Reading]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result()[0].cancel()
