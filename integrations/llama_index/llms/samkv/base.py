"""`SamKVLLM`: a LlamaIndex LLM that reads retrieved chunks from their caches instead of computing them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from llama_index.llms.samkv.nodes import Cacheable, ModeName, texts_of
from llama_index.llms.samkv.programs import SamKVPrograms
from llama_index.llms.samkv.requests import Request, Response
from llama_index.llms.samkv.reuse import Explanation, ReuseStats, SamKVReuseEvent, usage_of
from llama_index.llms.samkv.writing import Writer, shown
from samkv_rag import Answer
from samkv_rag.prompt.reasoning import split
from samkv_rag.stream import AnswerStream
from samkv_rag.threads import stoppable

dispatcher = get_dispatcher(__name__)


class SamKVLLM(SamKVPrograms):
    """A local Hugging Face model that finds cached chunks in any prompt and does not compute them again.

    Retriever, prompts and synthesizer stay as they are: chunk texts are found by content.

    Setup:
        Install `samkv-rag[llama-index]`. The "bundled" model needs no download.

    Instantiate:
        ```python
        from llama_index.core import Settings
        from llama_index.llms.samkv import SamKVLLM

        llm = SamKVLLM(model_name="bundled", kv_store="./kv", max_new_tokens=64)
        Settings.llm, Settings.tokenizer = llm, llm.tokenizer
        ```

    Complete:
        ```python
        llm.precompute(["Lumen Labs was founded in Bergen in 1987."])
        print(llm.complete("Lumen Labs was founded in Bergen in 1987.\\n\\nWhere was Lumen Labs founded?"))
        ```

    Chat:
        ```python
        from llama_index.core.llms import ChatMessage

        response = llm.chat([ChatMessage(role="user", content="Who are you?")], temperature=0.7, seed=1)
        print(response.message.content)
        ```

    Stream:
        ```python
        for chunk in llm.stream_complete("Where was Lumen Labs founded?", stop=["\\n"]):
            print(chunk.delta, end="", flush=True)
        ```

    Reasoning:
        ```python
        llm.chat([ChatMessage(role="user", content="Why?")], chat_template_kwargs={"enable_thinking": False})
        ```
        What models write between `<think>` tags is in a `ThinkingBlock` of the message, not in its text.

    Async:
        ```python
        import asyncio

        async def ask() -> None:
            print(await llm.acomplete("Where was Lumen Labs founded?"))

        asyncio.run(ask())
        ```

    Usage:
        ```python
        print(response.raw["usage"], response.raw["samkv"]["reused_tokens"])
        print(llm.stats())
        print(llm.explain("Lumen Labs was founded in Bergen in 1987.\\n\\nWhen?"))
        ```
    """

    # -- the chunks --------------------------------------------------------------------------------------------

    def precompute(
        self, nodes: Cacheable, metadata_mode: ModeName = "none", progress: bool = False
    ) -> list[str]:  # fmt: skip
        """Store the caches of nodes or texts; returns their keys. What is already stored costs nothing."""
        return self.engine.precompute(texts_of(nodes, metadata_mode), progress=progress)

    async def aprecompute(self, nodes: Cacheable, metadata_mode: ModeName = "none") -> list[str]:
        """Like `precompute`, in a thread, which stops soon if the task is cancelled."""
        texts = texts_of(nodes, metadata_mode)
        return await stoppable(lambda progress: self.engine.precompute(texts, progress))

    def stats(self) -> ReuseStats:
        """Totals over all answers so far."""
        return self._holder.tally.stats

    def explain(self, prompt: str | Sequence[ChatMessage], formatted: bool = False) -> Explanation:
        """What would be reused if this prompt (as for `complete`) or these messages (as for `chat`) were answered."""
        if isinstance(prompt, str):
            request: Request[Any] = self._completion_request(prompt, formatted, {})
        else:
            request = self._chat_request(prompt, {})
        return Explanation.of(self.engine.plan(request.prompt))

    # -- the eight calls ---------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._run(self._completion_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._stream(self._completion_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        await self._aready()
        return await self._arun(self._completion_request(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:  # fmt: skip
        await self._aready()
        return self._astream(self._completion_request(prompt, formatted, kwargs))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._run(self._chat_request(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._stream(self._chat_request(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await self._aready()
        return await self._arun(self._chat_request(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        await self._aready()
        return self._astream(self._chat_request(messages, kwargs))

    # -- the common path ---------------------------------------------------------------------------------------

    async def _aready(self) -> None:
        """Tokenizer and config are needed to make a request; the first caller reads them in a thread."""
        if self.engine not in self._holder.read:
            await asyncio.to_thread(lambda: (self.tokenizer, self.metadata))
            self._holder.read.add(self.engine)

    def _start(self, request: Request[Any]) -> AnswerStream:
        return self.engine.stream(request.prompt, **request.options)

    def _run(self, request: Request[Response]) -> Response:
        return self._whole(request, self.engine.generate(request.prompt, **request.options))

    async def _arun(self, request: Request[Response]) -> Response:
        return self._whole(request, await self._start(request).wait())

    def _whole(self, request: Request[Response], answer: Answer) -> Response:
        thought, text = split(answer.text, request.thoughts)
        return request.last(shown(request, text), self._note(answer), thought)

    def _stream(self, request: Request[Response]) -> Generator[Response, None, None]:
        """Stream the responses, starting when first iterated; closing the stream stops decoding within a token."""
        writer = Writer(request)
        with self._start(request) as stream:
            for piece in stream:
                yield from writer.write(piece)
        yield from writer.finish(self._note(stream.answer))

    async def _astream(self, request: Request[Response]) -> AsyncGenerator[Response, None]:
        """Like `_stream`, without blocking the event loop; cancelling the task stops decoding too."""
        writer = Writer(request)
        stream = self._start(request)
        try:
            async for piece in stream:
                for response in writer.write(piece):
                    yield response
            answer = await stream.wait()
        finally:
            stream.cancel()
        for response in writer.finish(self._note(answer)):
            yield response

    def _note(self, answer: Answer) -> Answer:
        """Count the answer and notify listeners."""
        self._holder.tally.add(answer)
        dispatcher.event(SamKVReuseEvent(usage=usage_of(answer), report=answer.report.as_dict()))
        return answer
