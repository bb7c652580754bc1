"""An explanation shows the answer that was given: counts, texts and scores, under every method in the case list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag import SamKV, SamKVEngine, SamKVError
from samkv_rag.explain import Explanation, explain
from samkv_rag.methods import Full, Prepared, Run
from samkv_rag.prompt.encoding import Encoder
from tests.cases import METHODS
from tests.models import byte_tokenizer, tiny_engine

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "Ana Petrov studied chemistry in Bergen: naïve café, 漢字 and 🎉, <|im_end|> and all.",
    "The company then moved to the coast, where it keeps a museum of old lamps that opens on every second Sunday.",
]
ASKED = "Where is Lumen Labs based?"


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return tiny_engine()


@pytest.mark.parametrize("name", METHODS)
def test_the_parts_add_up_to_the_report_and_to_the_texts(engine: SamKVEngine, name: str) -> None:
    view = explain(engine, ASKED, CHUNKS, [METHODS[name]], max_new_tokens=2).methods[0]
    report, counts = view.answer.report, view.tokens
    assert report.chunk_tokens > 0 and report.misses == ()
    assert counts["dropped"] == report.dropped_tokens
    assert counts["anchor"] + counts["selected"] + counts["kept"] + counts["packed"] == report.kept_tokens
    assert counts["packed"] == report.packed_tokens
    assert counts["recomputed"] == report.recomputed_tokens
    assert counts["reused"] == report.reused_tokens
    assert ["".join(part.text for part in chunk.parts) for chunk in view.chunks] == CHUNKS
    assert sum(chunk.tokens() for chunk in view.chunks) == report.chunk_tokens


def test_the_selection_shown_is_the_very_one_of_the_answer(engine: SamKVEngine) -> None:
    """A method that never chooses the same twice: scoring again would show something else."""
    view = explain(engine, ASKED, CHUNKS, [Alternating([])], max_new_tokens=1).methods[0]
    assert view.tokens["dropped"] == view.answer.report.dropped_tokens == 0
    again = explain(engine, ASKED, CHUNKS, [Alternating([1])], max_new_tokens=1).methods[0]
    assert again.tokens["dropped"] == again.answer.report.dropped_tokens > 0


class Alternating:
    """Keeps everything the first time, and 20 % the next."""

    name = "alternating"

    def __init__(self, runs: list[int]) -> None:
        self.runs = runs

    def prepare(self, run: Run) -> Prepared:
        self.runs.append(1)
        return SamKV(keep=0.2 if len(self.runs) % 2 == 0 else 1.0, recompute=0.5, rest="drop").prepare(run)


def test_anchors_and_scores_are_shown_where_blocks_are_ranked(engine: SamKVEngine) -> None:
    ends, plain = explain(engine, ASKED, CHUNKS, [SamKV(settle="before", keep=0.4, initial=4, local=4), Full()]).methods
    for chunk in ends.chunks:
        anchors = [t for p in chunk.parts for t in range(p.start, p.start + p.tokens) if p.state == "anchor"]
        assert anchors == [*range(4), *range(chunk.tokens() - 4, chunk.tokens())]
    parts = [part for chunk in ends.chunks for part in chunk.parts]
    scores = {(chunk.number, part.block): part.score for chunk in ends.chunks for part in chunk.parts}
    assert len(set(scores.values())) > 5
    assert all(part.score == scores[(chunk.number, part.block)] for chunk in ends.chunks for part in chunk.parts)
    chosen = [part.score for part in parts if part.state == "selected" and part.score is not None]
    left = [part.score for part in parts if part.state == "dropped" and part.score is not None]
    assert sorted(chosen)[1] >= sorted(left)[-2], "all but the block that was cut to fit beat all that were dropped"
    assert {part.score for chunk in plain.chunks for part in chunk.parts} == {None}
    assert plain.uniform and not ends.uniform


def test_an_answer_that_ends_before_it_is_settled_shows_what_was_looked_at(engine: SamKVEngine) -> None:
    view = explain(engine, ASKED, CHUNKS, [SamKV()], max_new_tokens=1).methods[0]
    parts = [part for chunk in view.chunks for part in chunk.parts]
    assert {part.state for part in parts} == {"selected"}
    assert len({part.score for part in parts}) > 5 and None not in {part.score for part in parts}


def test_an_object_is_labelled_with_its_options(engine: SamKVEngine) -> None:
    seen = explain(engine, ASKED, CHUNKS, [SamKV(), SamKV(rest="drop", keep=0.3), Full()], max_new_tokens=1)
    assert [method.label for method in seen.methods] == ["samkv", "samkv:keep=0.3,rest=drop", "full"]


def test_methods_are_written_as_for_eval_and_keep_goes_into_those_that_do_not_say(engine: SamKVEngine) -> None:
    lines = ["samkv:rest=drop", "samkv:keep=0.5,look=bound,rest=drop", "reuse"]
    seen = explain(engine, ASKED, CHUNKS, lines, keep=0.25, max_new_tokens=1)
    assert [method.label for method in seen.methods] == lines
    kept = [method.answer.report.kept_tokens for method in seen.methods]
    total = seen.methods[0].answer.report.chunk_tokens
    assert kept == [int(0.25 * total), int(0.5 * total), total]
    with pytest.raises(SamKVError, match="no method 'nonsense'"):
        explain(engine, ASKED, CHUNKS, ["nonsense"])
    with pytest.raises(SamKVError, match="name one"):
        explain(engine, ASKED, CHUNKS, [])


def test_a_question_without_chunks_is_an_ordinary_answer(engine: SamKVEngine) -> None:
    view = explain(engine, ASKED, [], max_new_tokens=1).methods[0]
    assert view.chunks == () and view.uniform


def test_notebooks_show_the_page_in_a_frame_of_its_own(engine: SamKVEngine) -> None:
    seen: Explanation = explain(engine, 'Who said "<hi>"?', CHUNKS, max_new_tokens=1)
    framed = seen._repr_html_()
    assert framed.startswith("<iframe sandbox ") and framed.count("<") == 2
    assert replace(seen, question="x").html != seen.html


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_token_texts_are_the_text_in_pieces_one_for_each_token(text: str) -> None:
    encoder = Encoder(byte_tokenizer())
    pieces = encoder.chunk_texts(text)
    assert len(pieces) == len(encoder.chunk(text))
    assert not pieces or "".join(pieces) == text
