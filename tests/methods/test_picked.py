"""Tokens picked among those of all chunks: always as many as stated, and which give way to which."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samkv_rag.methods.picked import Picked, best_of, exchanged, largest

VALUES = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=40)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")]), min_size=1, max_size=30),
    st.integers(-2, 40), st.integers(0, 2**30),
)  # fmt: skip
@settings(deadline=None)
def test_so_many_are_picked_as_are_said_to_be(values: list[float], count: int, seed: int) -> None:
    """The size of what is computed next is not read from a GPU: it must be right whatever the values are."""
    worth = torch.tensor(values)
    some = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.5
    for picked in (largest(worth, count), best_of(Picked(some, int(some.sum())), worth, count)):
        assert int(picked.marks.sum()) == picked.count == len(picked.at)
        assert picked.at.tolist() == picked.marks.nonzero()[:, 0].tolist()
    assert bool((some | ~picked.marks).all()), "the best of some are among them"


@given(VALUES, st.integers(1, 40), st.data())
@settings(deadline=None)
def test_what_was_picked_by_value_is_exchanged_for_the_largest_values(
    values: list[float], count: int, data: st.DataObject
) -> None:  # fmt: skip
    """The default: a choice by rank, no anchors. Of equals the first, as everywhere."""
    before = torch.tensor(values)
    rises = data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    after = before + torch.tensor(rises)
    picked = largest(before, count)
    assert torch.equal(exchanged(picked, before, before, after).marks, largest(after, picked.count).marks)


@given(VALUES, st.data())
@settings(deadline=None)
def test_only_what_has_risen_takes_a_place_and_nothing_that_must_stay_gives_way(
    values: list[float], data: st.DataObject
) -> None:  # fmt: skip
    """In whatever order the tokens were picked, and whichever they were."""
    of_all = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    marks, fixed, rose = (torch.tensor(data.draw(of_all)) for _ in range(3))
    before, order = torch.tensor(values), torch.tensor(values).flip(0)
    after = before + 3.0 * rose
    picked, fixed = Picked(marks, int(marks.sum())), fixed & marks
    got = exchanged(picked, order.masked_fill(fixed, float("inf")), before, after)
    assert int(got.marks.sum()) == got.count == picked.count
    assert bool((got.marks | ~fixed).all()), "what must stay stays"
    assert bool((rose | ~(got.marks & ~marks)).all()), "nothing comes that did not rise"
    gone, left = marks & ~got.marks, marks & got.marks & ~fixed & ~rose
    if gone.any() and left.any():
        assert order[gone & ~rose].tolist() == [] or order[gone & ~rose].max() <= order[left].min()
