"""Which sets of layers are tried, and which of several values is chosen by what they leave."""

from __future__ import annotations

import pytest

from samkv_rag.profiling.answers import Left
from samkv_rag.profiling.candidates import Layers, as_good, candidates, cheapest, kept_or_best, least, without_one

# -- what is tried -------------------------------------------------------------------------------------------------


def test_what_agrees_best_is_tried_one_layer_to_four_and_some_sets_whatever_agrees() -> None:
    worth = {5: 8, 2: 4, 6: 2, 1: 1}
    sets = candidates(8, lambda layers: sum(worth.get(layer, 0) for layer in layers), [(-1, 0)])
    assert sets == [
        (5,), (2, 5), (2, 5, 6), (1, 2, 5, 6), (1, 3, 5, 7), (2, 3, 4, 5), (4, 5, 6, 7), tuple(range(8)), (0, 7),
    ]  # fmt: skip


def test_the_second_layer_is_the_one_that_goes_best_with_the_first() -> None:
    table: dict[Layers, float] = {(5,): 0.9, (6,): 0.8, (5, 6): 0.9, (0, 5): 0.95}
    assert candidates(8, lambda layers: table.get(layers, 0), [])[:2] == [(5,), (0, 5)]


@pytest.mark.parametrize(("depth", "want"), [(1, [(0,)]), (2, [(0,), (0, 1), (1,)])])
def test_a_model_with_few_layers_has_few_sets(depth: int, want: list[Layers]) -> None:
    assert sorted(candidates(depth, lambda layers: -layers[0], [])) == sorted(want)


def test_a_small_set_is_tried_without_each_of_its_layers() -> None:
    assert without_one((1, 3, 7)) == [(3, 7), (1, 7), (1, 3)]
    assert without_one((4,)) == without_one(tuple(range(8))) == []


# -- what is chosen ------------------------------------------------------------------------------------------------


NOW: Layers = (7,)


def eight(*found: Left) -> list[Left]:
    """At least as many questions as conclusions need."""
    return [*found] * 8


@pytest.mark.parametrize(
    ("losses", "want"),
    [
        ({(2,): [0.1, 0.0, 0.1], (3,): [0.9, 0.8, 0.7]}, (2,)),  # the one that loses least
        ({(1, 2): [0.0, 0.4, 0.25], (3,): [0.3, 0.05, 0.25]}, (1, 2)),  # as good: the lower last layer, then the size
        ({(0, 3): [0.1, 0.2, 0.3], (3,): [0.2, 0.1, 0.3]}, (3,)),  # the same last layer: the smaller one
        ({(1, 3): [0.3, 0.2, 0.3], (2, 3): [0.28, 0.2, 0.28]}, (2, 3)),  # only what they lose decides
        ({(1,): [0.3, 0.2, 0.4], (3,): [0.2, 0.1, 0.2]}, (3,)),  # a little worse, but every time
        ({(1,): [3.0, 0.0, 0.0], (3,): [0.2, 0.1, 2.5]}, (1,)),  # or only seems to be
        ({(1,): [2e-3, 1e-3, 2e-3], (3,): [0.0, 0.0, 0.0]}, (1,)),  # or by rounding
    ],
)
def test_the_cheapest_of_those_that_lose_as_little_as_the_best(losses: dict[Layers, list[float]], want: Layers) -> None:
    left = {layers: eight(*(Left(True, loss) for loss in found)) for layers, found in losses.items()}
    assert cheapest(NOW, left | {(9,): eight(*[Left(True, 5.0)] * 3)}) == want


def test_the_set_in_force_stays_where_the_questions_do_not_tell_sets_apart() -> None:
    kept, lost = Left(True, 0.0), Left(False, 10.0)
    assert cheapest(NOW, {(1,): eight(kept), (3,): eight(Left(True, 1e-3))}) == NOW, "nothing is lost by anything"
    assert cheapest(NOW, {(1,): [lost] * 7, (3,): [kept] * 7}) == NOW, "there are too few"
    assert cheapest(NOW, {(1,): [lost] * 8, (3,): [kept] * 8}) == (3,)


def test_who_loses_one_answer_more_is_not_as_good_however_wide_the_noise() -> None:
    kept, lost = Left(True, 0.0), Left(False, 10.0)
    assert cheapest(NOW, {(1,): [lost, *[kept] * 9], (3,): [kept] * 10}) == (3,)
    same = {(1,): [lost, *[kept] * 9], (3,): [*[kept] * 9, lost]}
    assert cheapest(NOW, same | {(9,): [lost] * 10}) == (1,), "the same number of them"


def test_the_least_value_is_taken_that_is_as_good_where_a_smaller_one_is_not() -> None:
    kept, lost = Left(True, 0.1), Left(False, 10.0)
    found = {0.25: eight(lost, kept), 0.5: eight(kept, kept), 1.0: eight(Left(True, 0.2), Left(True, 0.01))}
    assert as_good(found) == [0.5, 1.0] and least(1.0, found) == 0.5
    assert least(1.0, found | {0.0: eight(kept, kept)}) == 1.0, "nothing says what too little would be"
    assert least(0.25, found | {0.0: eight(kept, kept)}) == 0.5, "but what is in force is worse"
    assert least(1.0, {value: some[:7] for value, some in found.items()}) == 1.0, "there are too few questions"


def test_what_is_in_force_stays_unless_another_leaves_more() -> None:
    kept, more, lost = Left(True, 0.1), Left(True, 0.2), Left(False, 10.0)
    noise = {0.0: [*[kept, more] * 4, kept], 1.0: [*[more, kept] * 4, more]}
    assert kept_or_best(1.0, noise) == 1.0, "no better than by noise"
    clear = {0.0: eight(kept, kept), 0.5: eight(more, kept), 1.0: eight(lost, kept)}
    assert kept_or_best(1.0, clear) == 0.0
    assert kept_or_best(1.0, {value: some[:7] for value, some in clear.items()}) == 1.0, "there are too few questions"
