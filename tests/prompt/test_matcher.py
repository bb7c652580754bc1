"""The matcher against a brute-force search, on texts made to overlap, nest and repeat."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samkv_rag.prompt import Matcher, Span
from samkv_rag.prompt import matcher as matcher_module
from samkv_rag.prompt.windows import WindowFilter, hash_text, hash_windows
from samkv_rag.types import MatchRecord

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi", "pi")


def matcher_of(texts: dict[str, str], with_text: bool = False) -> Matcher:
    matcher = Matcher(texts.get if with_text else None)
    for key, text in texts.items():
        matcher.add(key, MatchRecord.of(text))
    return matcher


def brute_force(texts: dict[str, str], text: str) -> list[Span]:
    """The leftmost-longest matches, by trying every text at every place."""
    spans, start = [], 0
    while start < len(text):
        here = [(len(chunk), key) for key, chunk in texts.items() if chunk and text.startswith(chunk, start)]
        longest = max((length for length, _ in here), default=0)
        if longest:
            key = next(key for length, key in here if length == longest)
            spans.append(Span(start, start + longest, key, partial=False))
        start += longest or 1
    return spans


def prose(seed: int, words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i + i * seed) % len(WORDS)] for i in range(words))


# Few characters and long common beginnings: chunks nest, overlap and share heads, tails and lengths all the time.
pieces = st.sampled_from(["a", "b", " ", "ab", "\n", "é", "😀", "\ud800", "a" * 16, "ab" * 16, "b" * 31, "head " * 8])
chunk_texts = st.lists(pieces, max_size=8).map("".join)
known_texts = st.lists(chunk_texts, max_size=25).map(lambda texts: {f"k{i}": text for i, text in enumerate(texts)})


@st.composite
def prompts(draw: st.DrawFn) -> tuple[dict[str, str], str]:
    """Known texts, and a prompt put together from them, from their parts and from other pieces."""
    known = draw(known_texts)
    part = st.sampled_from(list(known.values()) or [""])
    cut = st.builds(lambda text, i, j: text[i:j], part, st.integers(0, 9), st.integers(20, 80))
    return known, "".join(draw(st.lists(st.one_of(part, cut, pieces), max_size=12)))


@settings(deadline=None, max_examples=400)
@given(prompts())
def test_finds_what_brute_force_finds(case: tuple[dict[str, str], str]) -> None:
    known, prompt = case
    assert matcher_of(known).find(prompt) == brute_force(known, prompt)


@settings(deadline=None, max_examples=150)
@given(prompts(), st.data())
def test_a_discarded_chunk_is_gone_and_the_rest_stay(case: tuple[dict[str, str], str], data: st.DataObject) -> None:
    known, prompt = case
    matcher = matcher_of(known)
    matcher.find(prompt)
    gone = data.draw(st.sets(st.sampled_from(sorted(known)))) if known else set()
    for key in gone:
        matcher.discard(key)
        matcher.discard(key)
    left = {key: text for key, text in known.items() if key not in gone}
    assert len(matcher) == len(left)
    assert all((key in matcher) == (key in left) for key in known)
    assert matcher.find(prompt) == brute_force(left, prompt)
    for key in gone:
        matcher.add(key, MatchRecord.of(known[key]))
    again = left | {key: known[key] for key in gone}
    found = [(span.start, span.stop) for span in matcher.find(prompt)]
    assert found == [(span.start, span.stop) for span in brute_force(again, prompt)]


@settings(deadline=None, max_examples=150)
@given(prompts())
def test_a_prefix_is_a_prefix_and_whole_chunks_win(case: tuple[dict[str, str], str]) -> None:
    known, prompt = case
    stop = 0
    for span in matcher_of(known, with_text=True).find(prompt):
        assert span.start >= stop
        stop = span.stop
        found = prompt[span.start : span.stop]
        here = max((len(t) for t in known.values() if prompt.startswith(t, span.start)), default=0)
        if span.partial:
            assert here == 0
            assert known[span.key].startswith(found)
            assert known[span.key][len(found)].isspace()
        else:
            assert len(found) == here
            assert found == known[span.key]


def test_the_brute_force_sees_a_wrong_matcher() -> None:
    """Negative control: a record with a wrong digest, which a broken matcher would trust, makes the two differ."""
    known = {"a": prose(1, 40), "b": prose(2, 40)}
    prompt = f"{known['a']}\n\n{known['b']}"
    right, wrong = matcher_of(known), matcher_of(known)
    wrong.add("b", MatchRecord.of(known["b"].replace(" ", "_")))
    assert right.find(prompt) == brute_force(known, prompt)
    assert wrong.find(prompt) != brute_force(known, prompt)


def test_one_changed_character_in_the_middle_is_no_match() -> None:
    chunk = prose(3, 60)
    middle = len(chunk) // 2
    changed = chunk[:middle] + "#" + chunk[middle + 1 :]
    matcher = matcher_of({"a": chunk})
    assert matcher.find(changed) == []
    assert matcher.find(changed + chunk) == [Span(len(changed), 2 * len(chunk), "a", partial=False)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 200])
def test_every_length_is_found_in_the_middle_of_a_word(length: int) -> None:
    chunk = prose(4, 60)[:length].replace(" ", "_")
    prompt = f"0{chunk}0"
    assert matcher_of({"a": chunk}).find(prompt) == [Span(1, 1 + length, "a", partial=False)]
    assert matcher_of({"a": chunk}).find(prompt[:length]) == []


def test_duplicates_give_the_oldest_key_until_it_goes() -> None:
    chunk = prose(5, 40)
    matcher = matcher_of({"first": chunk, "second": chunk})
    assert [span.key for span in matcher.find(chunk + chunk)] == ["first", "first"]
    matcher.discard("first")
    assert [span.key for span in matcher.find(chunk)] == ["second"]


def test_a_key_that_is_added_again_has_its_new_text() -> None:
    old, new = prose(6, 40), prose(7, 40)
    matcher = matcher_of({"a": old})
    matcher.add("a", MatchRecord.of(new))
    assert [prompt for prompt in (old, new) if matcher.find(prompt)] == [new]
    assert len(matcher) == 1


def test_an_empty_text_is_known_and_never_found() -> None:
    matcher = matcher_of({"a": ""})
    assert "a" in matcher
    assert matcher.find("some text") == []
    assert matcher.find("") == []
    matcher.discard("a")
    assert len(matcher) == 0


@pytest.mark.parametrize("spread", [1, 40], ids=["few lengths", "many lengths"])
def test_chunks_that_share_a_long_head(spread: int) -> None:
    head = "Confidential. For internal use only. " * 4
    known = {f"k{i}": head + f"{i:05d} " + "x" * (i % spread) + f" end {i * i:09d}" for i in range(600)}
    picked = [known[f"k{i}"] for i in (0, 17, 300, 599)]
    prompt = "\n\n".join([*picked, head + "unknown", *reversed(picked)])
    assert matcher_of(known).find(prompt) == brute_force(known, prompt)


class TestCutChunks:
    chunk = "The quick brown fox met a hedgehog.\nThen it rained for nine days, and the river rose to the bridge. " * 3

    def spans(self, prompt: str, *others: str) -> list[Span]:
        known = {"a": self.chunk.strip()} | {f"o{i}": text for i, text in enumerate(others)}
        return matcher_of(known, with_text=True).find(prompt)

    def test_a_prefix_is_cut_back_to_a_word(self) -> None:
        cut = self.chunk.index("river", 40) + 2
        (span,) = self.spans("Context: " + self.chunk[:cut] + "\n\nQuery: what?")
        assert span == Span(9, 9 + self.chunk.index(" river", 40), "a", partial=True)

    def test_a_cut_at_a_word_loses_nothing(self) -> None:
        cut = self.chunk.index(" river", 40)
        (span,) = self.spans(self.chunk[:cut] + "\nQuery: what?")
        assert span == Span(0, cut, "a", partial=True)

    def test_a_line_break_after_punctuation_is_no_boundary(self) -> None:
        cut = self.chunk.index("\n", 120)
        assert self.chunk[cut - 1] == "."
        (span,) = self.spans(self.chunk[: cut + 1] + "Query: what?")
        assert span.stop == self.chunk.rindex(" ", 0, cut)

    def test_a_short_prefix_is_left_alone(self) -> None:
        assert self.spans(self.chunk[: matcher_module.MIN_PARTIAL - 1]) == []

    def test_the_longest_prefix_of_several_wins(self) -> None:
        other = self.chunk[:150] + "something else that goes on and on and on"
        (span,) = self.spans(self.chunk[:200] + " #", other)
        assert (span.key, span.partial) == ("a", True)
        (span,) = self.spans(other[:180] + " #", other)
        assert (span.key, span.partial) == ("o0", True)

    def test_a_whole_chunk_wins_over_a_longer_prefix(self) -> None:
        nested = self.chunk[:100]
        (first, *_) = self.spans(self.chunk[:200], nested)
        assert first == Span(0, 100, "o0", partial=False)

    def test_without_texts_there_are_no_partial_spans(self) -> None:
        assert matcher_of({"a": self.chunk}).find(self.chunk[:200]) == []

    def test_a_text_that_is_gone_is_no_span(self) -> None:
        matcher = Matcher(lambda key: None)
        matcher.add("a", MatchRecord.of(self.chunk))
        assert matcher.find(self.chunk[:200]) == []

    def test_the_work_under_a_shared_head_is_bounded(self) -> None:
        head = "All rights reserved, do not copy, do not print. "
        known = {f"k{i}": f"{head}{i:06d} " * 3 for i in range(5000)}
        asked: list[str] = []

        def text_of(key: str) -> str:
            asked.append(key)
            return known[key]

        matcher = Matcher(text_of)
        for key, text in known.items():
            matcher.add(key, MatchRecord.of(text))
        matcher.find("\n".join(head + "no such number" for _ in range(50)))
        assert 0 < len(asked) <= 512


def test_chunks_may_be_added_while_others_search() -> None:
    always = {f"a{i}": prose(i, 60) + f" {i}" for i in range(50)}
    prompt = "\n\n".join(always.values())
    matcher = matcher_of(always, with_text=True)
    expected = matcher.find(prompt)
    stop, failures = threading.Event(), []

    def churn() -> None:
        head = prose(1, 60)[:120]
        i = 0
        while not stop.is_set():
            matcher.add(f"n{i}", MatchRecord.of(f"{head} other {i}" + "y" * (i % 90)))
            matcher.discard(f"n{i - 200}")
            i += 1

    def search() -> None:
        for _ in range(40):
            if matcher.find(prompt) != expected:
                failures.append("spans changed")

    writer = threading.Thread(target=churn)
    readers = [threading.Thread(target=search) for _ in range(3)]
    for thread in (writer, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    writer.join()
    assert failures == []


@pytest.mark.parametrize("level", range(6))
def test_window_hashes_agree_and_the_filter_misses_none(level: int) -> None:
    text = prose(8, 300)
    width = 1 << level
    windows = [text[i : i + width] for i in range(len(text) - width + 1)]
    hashes = hash_text(text, 5)[level]
    assert (hash_windows(windows, level) == hashes).all()
    assert len(WindowFilter(hashes).where(hashes)) == len(hashes)


def test_the_filter_keeps_most_unknown_windows_out() -> None:
    known = WindowFilter(hash_windows([f"{i:032d}" for i in range(20_000)], 5))
    others = hash_windows([f"{i:031d}x" for i in range(20_000)], 5)
    assert len(known.where(others)) < 200
