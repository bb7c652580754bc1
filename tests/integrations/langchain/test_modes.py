"""Every way in which LangChain brings documents to a model: the chunks are found, and nothing is lost at keep 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, dynamic_prompt
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_samkv import ChatSamKV, ChunkKVVectorStore
from samkv_rag import SamKVEngine

TEXTS = [
    'Lumen Labs was founded in 1998.\n\nIts "office" is in {Harrow}, next to the old mill.',
    "Orchid Freight carries timber from Vell to the southern ports.\nIt owns eleven ships.",
    "The library of Tamsin closes at nine, and at five on Sundays. Café Ω is next door.",
]
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from:\n\n{context}"), ("human", "{input}")])
QUESTION = "Where is the office?"
Mode = Callable[[ChatSamKV, BaseRetriever], tuple[Any, Any]]


def stuff(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    documents = [Document(page_content=text, metadata={"source": f"{n}.txt"}) for n, text in enumerate(TEXTS)]
    each = PromptTemplate.from_template("Source: {source}\n{page_content}")
    chain = create_stuff_documents_chain(llm, PROMPT, document_prompt=each, document_separator="\n---\n")
    return chain, {"context": documents, "input": QUESTION}


def lcel(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    context = retriever | RunnableLambda(joined)
    return {"context": context, "input": RunnablePassthrough()} | PROMPT | llm | StrOutputParser(), QUESTION


def map_reduce(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    one = ChatPromptTemplate.from_template("Summarise:\n\n{text}") | llm | StrOutputParser()
    every = ChatPromptTemplate.from_template("Put together:\n\n{texts}") | llm | StrOutputParser()
    texts = retriever | (lambda documents: [{"text": document.page_content} for document in documents])
    return texts | one.map() | (lambda summaries: {"texts": "\n".join(summaries)}) | every, QUESTION


def retrieval_chain(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    return create_retrieval_chain(retriever, create_stuff_documents_chain(llm, PROMPT)), {"input": QUESTION}


def history_aware(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    history = MessagesPlaceholder("chat_history")
    condense = ChatPromptTemplate.from_messages([("system", "Say it anew."), history, ("human", "{input}")])
    answer = ChatPromptTemplate.from_messages([("system", "From:\n{context}"), history, ("human", "{input}")])
    aware = create_history_aware_retriever(llm, retriever, condense)
    chain = create_retrieval_chain(aware, create_stuff_documents_chain(llm, answer))
    return chain, {"input": QUESTION, "chat_history": [HumanMessage("Hello"), AIMessage("Hello to you")]}


def agent(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    @tool(response_format="content_and_artifact")
    def look_up(topic: Literal["office", "timber"]) -> tuple[str, list[Document]]:
        """Look something up."""
        documents = retriever.invoke(topic)
        return "\n\n".join(f"Source: {d.metadata}\nContent: {d.page_content}" for d in documents), documents

    made = create_agent(llm, [look_up], system_prompt="You have a tool.", middleware=[FirstCall()])
    return made, {"messages": [HumanMessage(QUESTION)]}


class FirstCall(AgentMiddleware):
    """The first answer must be a tool call; after that the model does as it likes."""

    def wrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
        return handler(self.forced(request))

    async def awrap_model_call(self, request: ModelRequest, handler: Any) -> Any:
        return await handler(self.forced(request))

    def forced(self, request: ModelRequest) -> ModelRequest:
        answered = any(isinstance(message, ToolMessage) for message in request.messages)
        return request if answered else request.override(tool_choice="any")


def dynamic(llm: ChatSamKV, retriever: BaseRetriever) -> tuple[Any, Any]:
    @dynamic_prompt
    def with_context(request: ModelRequest) -> str:
        return "Answer from:\n\n" + joined(retriever.invoke(request.messages[-1].text))

    return create_agent(llm, [], middleware=[with_context]), {"messages": [HumanMessage(QUESTION)]}


def joined(documents: Sequence[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


class Recorder(BaseCallbackHandler):
    """What reached the model, and what it answered, call by call."""

    def __init__(self) -> None:
        self.asked: dict[Any, tuple[list[BaseMessage], dict[str, Any]]] = {}
        self.calls: list[tuple[list[BaseMessage], dict[str, Any], AIMessage]] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **kwargs: Any) -> None:
        given = kwargs["invocation_params"]
        self.asked[run_id] = messages[0], {name: given[name] for name in ("tools", "tool_choice") if name in given}

    def on_llm_end(self, response: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.calls.append((*self.asked[run_id], response.generations[0][0].message))


async def run(how: str, chain: Any, given: Any, config: Any) -> None:
    if how == "sync":
        chain.invoke(given, config)
    elif how == "async":
        await chain.ainvoke(given, config)
    elif how == "stream":
        assert list(chain.stream(given, config))
    else:
        assert [piece async for piece in chain.astream(given, config)]


# What the model gets of a retrieved text, call by call: True where there are chunks in the prompt.
MODES: dict[Mode, list[bool]] = {
    stuff: [True],
    lcel: [True],
    map_reduce: [True, True, False],
    retrieval_chain: [True],
    history_aware: [False, True],
    agent: [False, True],
    dynamic: [True],
}


@pytest.fixture
def retriever(engine: SamKVEngine) -> BaseRetriever:
    inner = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store = ChunkKVVectorStore(inner, engine)
    store.add_texts(TEXTS)
    return store.as_retriever(search_kwargs={"k": 2})


@pytest.mark.parametrize("how", ["sync", "async", "stream", "astream"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)
async def test_chunks_are_found_and_nothing_is_lost_at_keep_one(
    mode: Mode, how: str, engine: SamKVEngine, retriever: BaseRetriever
) -> None:
    llm = ChatSamKV(engine=engine, max_tokens=96 if mode is agent else 12, keep=1.0)
    recorder = Recorder()
    await run(how, *mode(llm, retriever), {"callbacks": [recorder]})
    assert [call.response_metadata["samkv"]["chunk_tokens"] > 0 for *_, call in recorder.calls] == MODES[mode]
    for asked, tools, answered in recorder.calls:
        report = answered.response_metadata["samkv"]
        usage = answered.usage_metadata
        assert report["prompt_tokens"] == report["glue_tokens"] + report["chunk_tokens"] == usage["input_tokens"]
        assert report["chunk_tokens"] == report["dropped_tokens"] + report["kept_tokens"]
        assert report["kept_tokens"] == report["reused_tokens"] + report["recomputed_tokens"]
        known = report["chunk_tokens"] - report["recomputed_tokens"] + report["head_tokens"]
        assert usage["input_token_details"]["cache_read"] == known
        assert report["kept_ratio"] == 1.0 and not report["misses"]
        full = llm.invoke(asked, method="full", keep=None, **tools)
        assert full.response_metadata["samkv"]["reused_tokens"] == 0
        assert (answered.text, made(answered)) == (full.text, made(full))


def made(message: AIMessage) -> list[tuple[str, dict[str, Any]]]:
    """The tool calls, without their random ids."""
    return [(call["name"], call["args"]) for call in message.tool_calls]


def test_the_comparison_can_fail(engine: SamKVEngine, retriever: BaseRetriever) -> None:
    """Negative control: caches that do not see each other give answers other than full prefill's."""
    llm = ChatSamKV(engine=engine, max_tokens=12)
    asked = PROMPT.invoke({"context": joined(retriever.invoke(QUESTION)), "input": QUESTION})
    answers = {llm.invoke(asked, method=method).text for method in ("reuse", "full")}
    assert len(answers) == 2
