"""Passages come in document order, each with the one before it, no text twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samkv_rag.retrieval import ChunkIndex, RetrievalError, ingest_folder
from samkv_rag.retrieval.embedding import HashingEmbedding, open_embedding
from samkv_rag.retrieval.follow import follow_ups, merge
from tests.retrieval.conftest import ALMA, BREAD, MOVED
from tests.retrieval.fakes import FakeEngine


def test_the_neighbour_before_comes_along(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    found = ChunkIndex.open(root).retrieve("Where did the company move, with wind from the sea?", top_k=1)
    assert [p.text for p in found] == [ALMA, MOVED]
    assert found[0].score is None and found[1].score is not None


def test_passages_stand_in_document_order(engine: FakeEngine, tmp_path: Path, root: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "b.txt").write_text("\n\n".join(f"{BREAD} Note {n}." for n in range(6)))
    (docs / "a.txt").write_text("\n\n".join(f"{MOVED} Note {n}." for n in range(6)))
    ingest_folder(engine, docs, root)
    found = ChunkIndex.open(root).retrieve("Who mended the wheel, and who complained?", top_k=5)
    places = [(p.path, p.position) for p in found]
    assert places == sorted(places) and len(set(places)) == len(places) >= 5


def test_a_text_in_two_files_comes_once(engine: FakeEngine, folder: Path, root: Path) -> None:
    (folder / "copy.txt").write_text(BREAD)
    ingest_folder(engine, folder, root)
    found = [p.text for p in ChunkIndex.open(root).retrieve("Who grinds rye?", top_k=10)]
    assert len(found) == len(set(found)) == 3


def test_more_chunks_than_there_are_need_no_room(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    assert len(ChunkIndex.open(root).retrieve("Who grinds rye?", top_k=10**15)) == 3


def test_the_second_look_follows_a_name(engine: FakeEngine, tmp_path: Path, root: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "person.txt").write_text("Mila Ostrand works at Verdal Pumps. She has two dogs.")
    (docs / "company.txt").write_text("Verdal Pumps sits in Orrin. The hall is green.")
    for n in range(20):
        other = f"The employer of number {n} is kind. A city has streets, and this is based on it."
        (docs / f"other{n}.txt").write_text(other)
    ingest_folder(engine, docs, root)
    found = [p.text for p in ChunkIndex.open(root).retrieve("In which city is the employer of Mila Ostrand based?", 3)]
    assert any("Mila Ostrand" in text for text in found) and any("Orrin" in text for text in found)


def test_follow_ups_are_names_that_the_question_lacks() -> None:
    queries = follow_ups("Where does Mila work?", "Mila Ostrand works at Verdal Pumps. She likes it in Orrin.")
    assert [query.removeprefix("Where does Mila work? ") for query in queries] == [
        "Verdal Pumps Verdal Pumps",
        "Orrin Orrin",
    ]


def test_merging_takes_turns() -> None:
    assert merge([1, 2], [[3, 4, 5], [1, 6]], 5) == [1, 2, 3, 4, 6]


def test_an_empty_index_says_what_to_do(engine: FakeEngine, folder: Path, root: Path) -> None:
    ingest_folder(engine, folder, root)
    for path in (folder / "alma.md", folder / "more" / "bread.txt"):
        path.unlink()
    ingest_folder(engine, folder, root)
    with pytest.raises(RetrievalError, match="samkv-rag ingest"):
        ChunkIndex.open(root).retrieve("Anything?")


def test_embeddings_are_unit_vectors_and_rare_words_decide() -> None:
    embed = HashingEmbedding()
    texts = ["the red kettle sings", "the red lamp shines", "the red boat floats"]
    vectors = np.array([embed.get_text_embedding(text) for text in texts], dtype=np.float32)
    embed.fit(vectors)
    scores = vectors @ np.array(embed.get_query_embedding("the red boat"))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and scores.argmax() == 2
    assert not any(embed.get_query_embedding(""))


def test_a_missing_sentence_transformer_names_the_command() -> None:
    pytest.importorskip("llama_index.core")
    with pytest.raises(RetrievalError, match="pip install llama-index-embeddings-huggingface"):
        open_embedding("some/model")
