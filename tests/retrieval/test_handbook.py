"""The bundled handbook: long enough, consistent with its questions, and found by retrieval."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from samkv_rag.demo import HANDBOOK, DemoQuestion, questions
from samkv_rag.eval.metrics import normalise
from samkv_rag.retrieval import ChunkIndex, ingest_folder
from tests.retrieval.fakes import FakeEngine


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ChunkIndex:
    store = tmp_path_factory.mktemp("store")
    ingest_folder(FakeEngine(store / "kv"), HANDBOOK, store / "index")
    return ChunkIndex.open(store / "index")


def chunks(index: ChunkIndex) -> list[str]:
    nodes = [node for entry in index.documents.values() for node in entry.nodes]
    return [node.get_content() for node in index._index.docstore.get_nodes(nodes)]


def test_it_has_sixty_chunks_in_several_files(index: ChunkIndex) -> None:
    assert len(index.documents) >= 5 and len(chunks(index)) >= 60


def test_there_are_ten_questions_of_three_kinds() -> None:
    kinds = Counter(question.kind for question in questions())
    assert kinds.total() == 10 and min(kinds[kind] for kind in ("one_hop", "two_hop", "earlier_chunk")) >= 3


@pytest.mark.parametrize("question", questions(), ids=lambda q: q.question)
def test_every_answer_stands_in_its_supporting_chunk(index: ChunkIndex, question: DemoQuestion) -> None:
    holders = [[n for n, text in enumerate(chunks(index)) if support in text] for support in question.support]
    assert all(len(found) == 1 for found in holders), "each support stands in exactly one chunk"
    assert f" {normalise(question.expected)} " in f" {normalise(question.support[-1])} "
    places = [found[0] for found in holders]
    if question.kind == "earlier_chunk":
        assert places[1] == places[0] + 1
        name = " ".join(re.findall(r"[A-Z]\w+", question.question)[1:])
        assert name and name not in chunks(index)[places[1]] and name in chunks(index)[places[0]]
    if question.kind == "two_hop":
        assert len(set(places)) == 2


@pytest.mark.parametrize("question", questions(), ids=lambda q: q.question)
def test_retrieval_finds_what_the_answer_needs(index: ChunkIndex, question: DemoQuestion) -> None:
    found = [passage.text for passage in index.retrieve(question.question, top_k=5)]
    assert all(any(support in text for text in found) for support in question.support)
    assert len(found) <= 10


def test_each_fact_is_told_once() -> None:
    """A name has one founder, one leader and one place, wherever the handbook says so."""
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(Path(HANDBOOK).glob("*.md")))
    for pattern in (
        r"((?:[A-Z]\w+ )+)was founded by ([A-Z]\w+ [A-Z]\w+)",
        r"((?:[A-Z]\w+ )+)is based in ([A-Z]\w+)",
        r"((?:[A-Z]\w+ )+)is led by ([A-Z]\w+ [A-Z]\w+)",
    ):
        pairs = {pair for pair in re.findall(pattern, text) if " " in pair[0].strip()}
        assert len(pairs) == len({name for name, _ in pairs}) > 0
