"""Every mode of the framework, sync, async and streamed: chunks are reused, and at keep 1 the answer is full prefill's.

The model is random, so what an engine does with an answer's words (selectors, question generators, rerankers) is
given to it; every prompt takes the real path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.node_parser import HierarchicalNodeParser, SentenceWindowNodeParser, get_leaf_nodes
from llama_index.core.postprocessor import LLMRerank, LongContextReorder, MetadataReplacementPostProcessor
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.retrievers import AutoMergingRetriever
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool, ToolMetadata

from llama_index.llms.samkv import ChunkKVVectorStore, SamKVLLM, precompute_index
from samkv_rag import SamKV
from tests.integrations.llama_index.kit import QUESTION, TEXTS, Recorder, adds_up, documents, nodes

WAYS = ["sync", "async", "stream", "astream"]

ALTERED = {
    "simple_summarize": "the framework puts the Python repr of a list of texts into the prompt: line breaks and "
    "quotes come escaped, so that only chunks of one line without quotes are found (run-llama/llama_index#22392)",
}
"""Modes in which the framework itself alters the chunks' text, with the reason: only `ONE_LINE` is found there."""

ONE_LINE = {text for text in TEXTS if not {"\n", '"'}.intersection(text)}

NOT_STREAMED = {"accumulate", "compact_accumulate"}
"""Response modes that refuse to stream."""

RESPONSE_MODES = [
    "compact", "refine", "tree_summarize", "accumulate", "compact_accumulate", "simple_summarize",
]  # fmt: skip


def wrapped_index(llm: SamKVLLM) -> VectorStoreIndex:
    from llama_index.core.vector_stores import SimpleVectorStore

    store = ChunkKVVectorStore(SimpleVectorStore(), llm=llm)
    return VectorStoreIndex.from_documents(
        documents(), storage_context=StorageContext.from_defaults(vector_store=store)
    )


def by_mode(mode: str) -> Callable[..., Any]:
    return lambda llm, streaming: wrapped_index(llm).as_query_engine(
        response_mode=mode, streaming=streaming, similarity_top_k=len(TEXTS)
    )


def auto_merging(llm: SamKVLLM, streaming: bool) -> Any:
    everything = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 64], chunk_overlap=0).get_nodes_from_documents(
        documents()[:2]
    )
    context = StorageContext.from_defaults()
    context.docstore.add_documents(everything)
    precompute_index(context.docstore, llm)
    index = VectorStoreIndex(get_leaf_nodes(everything), storage_context=context)
    retriever = AutoMergingRetriever(index.as_retriever(similarity_top_k=6), context, simple_ratio_thresh=0.3)
    return RetrieverQueryEngine.from_args(retriever, streaming=streaming)


def sentence_window(llm: SamKVLLM, streaming: bool) -> Any:
    parser = SentenceWindowNodeParser.from_defaults(sentence_splitter=lambda text: text.splitlines(), window_size=1)
    index = VectorStoreIndex(parser.get_nodes_from_documents(documents()))
    precompute_index(index, llm, metadata_key="window")
    replace = MetadataReplacementPostProcessor(target_metadata_key="window")
    return index.as_query_engine(similarity_top_k=2, node_postprocessors=[replace], streaming=streaming)


def rerank(llm: SamKVLLM, streaming: bool) -> Any:
    def choices(_: str, count: int) -> tuple[list[int], list[float]]:
        return [1, 2][:count], [9.0, 8.0][:count]

    best = LLMRerank(llm=llm, top_n=2, choice_batch_size=3, parse_choice_select_answer_fn=choices)
    return wrapped_index(llm).as_query_engine(
        similarity_top_k=4, node_postprocessors=[best, LongContextReorder()], streaming=streaming
    )


def tools(llm: SamKVLLM, streaming: bool) -> list[QueryEngineTool]:
    engines = [wrapped_index(llm).as_query_engine(similarity_top_k=2, streaming=streaming) for _ in range(2)]
    return [
        QueryEngineTool(query_engine=engine, metadata=ToolMetadata(name=name, description=f"About {name}."))
        for engine, name in zip(engines, ("labs", "ships"), strict=True)
    ]


class GivenQuestions(BaseQuestionGenerator):
    """Asks each tool the question itself."""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass

    def generate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=query.query_str, tool_name=tool.get_name()) for tool in tools]

    async def agenerate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


class FirstChoice(BaseSelector):
    """Chooses the first engine."""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=0, reason="the first")])

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


def sub_question(llm: SamKVLLM, streaming: bool) -> Any:
    return SubQuestionQueryEngine.from_defaults(
        tools(llm, False), question_gen=GivenQuestions(), verbose=False, use_async=False,
        response_synthesizer=get_response_synthesizer(llm=llm, streaming=streaming),
    )  # fmt: skip


def router(llm: SamKVLLM, streaming: bool) -> Any:
    return RouterQueryEngine(selector=FirstChoice(), query_engine_tools=tools(llm, streaming), llm=llm)


QUERY_ENGINES: dict[str, Callable[..., Any]] = {
    **{mode: by_mode(mode) for mode in RESPONSE_MODES},
    "auto_merging": auto_merging,
    "sentence_window": sentence_window,
    "rerank": rerank,
    "sub_question": sub_question,
    "router": router,
}
CHAT_ENGINES = ["context", "condense_plus_context", "condense_question"]


def ask(engine: Any, way: str) -> str:
    if way in ("async", "astream"):
        return asyncio.run(_aask(engine, way))
    response = engine.query(QUESTION)
    return "".join(response.response_gen) if way == "stream" else str(response)


async def _aask(engine: Any, way: str) -> str:
    response = await engine.aquery(QUESTION)
    if way == "async":
        return str(response)
    return "".join([piece async for piece in response.async_response_gen()])


def talk(engine: Any, way: str, text: str) -> str:
    if way in ("async", "astream"):
        return asyncio.run(_atalk(engine, way, text))
    return "".join(engine.stream_chat(text).response_gen) if way == "stream" else str(engine.chat(text))


async def _atalk(engine: Any, way: str, text: str) -> str:
    if way == "async":
        return str(await engine.achat(text))
    response = await engine.astream_chat(text)
    return "".join([piece async for piece in response.async_response_gen()])


def check(recorder: Recorder, llm: SamKVLLM, cell: str) -> None:
    """Check the three promises for every prompt of a cell."""
    assert recorder.asked
    for asked in recorder.asked:
        assert asked.answer.token_ids == recorder.full(asked).token_ids
        assert adds_up(asked.answer)
    total = sum(asked.answer.report.chunk_tokens for asked in recorder.asked)
    found = {chunk.text for asked in recorder.asked for chunk in llm.engine.plan(asked.prompt).chunks}
    assert found == ONE_LINE if cell in ALTERED else total > 0
    stats = llm.stats()
    assert stats.answers == len(recorder.asked) and stats.chunk_tokens == total and stats.misses == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", QUERY_ENGINES)
def test_query_engines(llm: SamKVLLM, mode: str, way: str) -> None:
    llm.keep = 1.0
    streaming = way.endswith("stream")
    engine = QUERY_ENGINES[mode](llm, streaming)
    if streaming and mode in NOT_STREAMED:
        with pytest.raises(ValueError, match="Unable to stream"):
            ask(engine, way)
        return
    recorder = Recorder(llm.engine)
    text = ask(engine, way)
    assert recorder.asked[-1].answer.text.lstrip() in text
    check(recorder, llm, mode)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", CHAT_ENGINES)
def test_chat_engines(llm: SamKVLLM, mode: str, way: str) -> None:
    """Two turns: from the second on a history comes between or after the chunks."""
    llm.keep = 1.0
    engine = wrapped_index(llm).as_chat_engine(chat_mode=mode, similarity_top_k=2)
    recorder = Recorder(llm.engine)
    for turn in (QUESTION, "And when?"):
        assert talk(engine, way, turn).strip() == recorder.asked[-1].answer.text.strip()
    check(recorder, llm, mode)


def test_the_comparison_can_fail(llm: SamKVLLM) -> None:
    """Negative control: caches that do not see each other give answers other than full prefill's."""
    llm.method = "reuse"
    engine = wrapped_index(llm).as_query_engine(similarity_top_k=4)
    recorder = Recorder(llm.engine)
    for question in (QUESTION, "And when?", "By whom?"):
        engine.query(question)
    assert any(asked.answer.token_ids != recorder.full(asked).token_ids for asked in recorder.asked)


def test_keep_below_one_thins_and_still_answers(llm: SamKVLLM) -> None:
    llm.keep, llm.method = 0.3, SamKV(rest="drop")
    index = wrapped_index(llm)
    index.as_query_engine(similarity_top_k=4).query(QUESTION)
    stats = llm.stats()
    assert 0 < stats.kept_tokens <= 0.3 * stats.chunk_tokens
    assert stats.cache_read >= 0.7 * stats.chunk_tokens


def test_nothing_known_is_an_ordinary_call(llm: SamKVLLM) -> None:
    VectorStoreIndex(nodes()).as_query_engine().query(QUESTION)
    assert (llm.stats().answers, llm.stats().chunk_tokens) == (1, 0)


def test_a_packed_prompt_reuses_the_beginning_of_its_cut_chunk(llm: SamKVLLM) -> None:
    """A small window cuts a chunk over two prompts: its head is served, its tail computed."""
    llm.keep, llm.context_window = 1.0, 2300
    long = [f"{text} " * 6 for text in TEXTS]
    index = VectorStoreIndex(nodes(long))
    precompute_index(index, llm)
    recorder = Recorder(llm.engine)
    index.as_query_engine(similarity_top_k=4, response_mode="compact").query(QUESTION)
    assert len(recorder.asked) > 1
    check(recorder, llm, "compact")
    found = {chunk.text for asked in recorder.asked for chunk in llm.engine.plan(asked.prompt).chunks}
    whole = {text.strip() for text in long}
    assert found & whole and any(text not in whole for text in found)
