"""Rows are repeated as torch repeats them, whatever the counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samkv_kernels.repeating import repeated


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@given(counts=st.lists(st.integers(0, 5), max_size=9))
def test_rows_come_as_often_as_they_are_asked_for(dtype: torch.dtype, counts: list[int]) -> None:
    often = torch.tensor(counts, dtype=dtype)
    for x in (torch.arange(len(counts)), torch.randn(len(counts), 3), torch.arange(len(counts), dtype=torch.int32)):
        got, want = repeated(x, often), x.repeat_interleave(often, 0)
        assert torch.equal(got, want) and got.dtype == want.dtype
