"""A tiny random model with room for the framework's prompts, documents, and a record of what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import transformers as tf
from llama_index.core import Document
from llama_index.core.schema import TextNode

from llama_index.llms.samkv import SamKVLLM
from samkv_rag import Answer, ChunkKVStore, SamKVEngine
from samkv_rag.stream import AnswerStream
from tests.cases import SIZES
from tests.models import build, byte_tokenizer

TEXTS = [
    "Lumen Labs report.\n\nThe laboratory was founded in Bergen in 1987 by Ada Holm, and its code is 17.",
    'Harbour memo: the north pier is "quoted" with {braces} and a\ttab.\nShips wait there until the tide turns.',
    "Garden note: the café in the glass house opens at nine; roses need water twice a week. It’s written here.",
    "Railway letter.\nThe night train to Turin leaves platform four, and stops in Basel for eleven minutes.",
]
QUESTION = "Where was Lumen Labs founded?"


@cache
def model() -> Any:
    """A random Llama over bytes with 8192 positions, sharp enough for every prompt to have an answer of its own."""
    sizes = SIZES | {"num_hidden_layers": 2, "max_position_embeddings": 8192}
    return build(tf.LlamaConfig(**sizes), sharpen=8.0)


def make_engine(chat: bool = True, store: Any = None, **options: Any) -> SamKVEngine:
    return SamKVEngine.from_pretrained(
        model(), tokenizer=byte_tokenizer(chat),
        store=ChunkKVStore(":memory:") if store is None else store, **options,
    )  # fmt: skip


def make_llm(engine: SamKVEngine | None = None, **fields: Any) -> SamKVLLM:
    """An LLM over the tiny model that answers with a few tokens."""
    return SamKVLLM.from_engine(engine or make_engine(), **{"max_new_tokens": 6, **fields})


def documents() -> list[Document]:
    """The texts, with one header that appears in prompts and one that does not."""
    options = {"excluded_llm_metadata_keys": ["page"]}
    return [
        Document(text=text, id_=f"doc{i}", metadata={"file_name": f"{i}.txt", "page": i}, **options)
        for i, text in enumerate(TEXTS)
    ]


def nodes(texts: Sequence[str] = TEXTS) -> list[TextNode]:
    return [TextNode(text=text, id_=f"node{i}") for i, text in enumerate(texts)]


@dataclass
class Asked:
    """One request as the engine got it, and its answer."""

    prompt: Any
    options: dict[str, Any]
    result: Answer | AnswerStream

    @property
    def answer(self) -> Answer:
        return self.result if isinstance(self.result, Answer) else self.result.answer


@dataclass
class Recorder:
    """Listens at the engine's two entry points."""

    engine: SamKVEngine
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        generate, stream = self.engine.generate, self.engine.stream

        def record(verb: Any) -> Any:
            def ask(prompt: Any, **options: Any) -> Any:
                result = verb(prompt, **options)
                self.asked.append(Asked(prompt, options, result))
                return result

            return ask

        self.engine.generate = record(generate)  # type: ignore[method-assign]
        self.engine.stream = record(stream)  # type: ignore[method-assign]
        self.full = lambda asked: generate(asked.prompt, **{**asked.options, "method": "full", "keep": None})


def adds_up(answer: Answer) -> bool:
    """Whether the counts of an answer's report fit together: what is kept, reused, recomputed and dropped."""
    report = answer.report
    return (
        report.prompt_tokens == report.glue_tokens + report.chunk_tokens
        and report.chunk_tokens == report.dropped_tokens + report.kept_tokens
        and report.kept_tokens == report.reused_tokens + report.recomputed_tokens
        and answer.usage.cache_read == report.chunk_tokens - report.recomputed_tokens + report.head_tokens
        and answer.usage.prompt_tokens == report.prompt_tokens
    )
