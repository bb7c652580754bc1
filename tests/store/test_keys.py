from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samkv_rag.store import chunk_key

parts = st.tuples(st.lists(st.integers(0, 2**40), max_size=6), st.text(max_size=4), st.text(max_size=4))


def test_is_the_same_in_every_version() -> None:
    assert chunk_key([1, 2, 3], "model", "default") == "c531f60a7d9b53ac6b698ac7b0cff422dc0f9a1a"


@given(parts, parts)
def test_different_arguments_give_different_keys(
    one: tuple[list[int], str, str], two: tuple[list[int], str, str]
) -> None:
    assert (chunk_key(*one) == chunk_key(*two)) == (one == two)


def test_parts_do_not_run_into_each_other() -> None:
    assert chunk_key([1], "ab", "c") != chunk_key([1], "a", "bc")
    assert chunk_key([], "", "") != chunk_key([0], "", "")


@pytest.mark.parametrize("make", [tuple, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.int32)])
def test_any_sequence_of_ids_will_do(make: object) -> None:
    assert chunk_key(make([5, 6]), "f", "n") == chunk_key([5, 6], "f", "n")  # type: ignore[operator]
