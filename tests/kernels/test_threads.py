"""Work that torch's threads share: every part is done once, whoever does it, and what cannot be read is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samkv_kernels.cpu import threads
from samkv_kernels.cpu.threads import items_of, opened, parts_of, several, shared
from samkv_kernels.packed import Packed, packed_attention

KINDS = "int64[::1], int64[::1], int64"
ONES = torch.ones(7, dtype=torch.long)


@shared(KINDS)
def counted(job: Any) -> None:
    """Add a number to every item's, and say which part did so."""
    items, parts, number = opened(job, KINDS)
    for part, item in items_of(job):
        items[item] += number
        parts[item] = part


def test_every_item_is_done_once() -> None:
    for items in (1, 2, 7, 1000):
        for parts in range(1, min(items, 9) + 1):
            done, by = torch.zeros(2, items, dtype=torch.long)
            counted(parts, items, done, by, 5)
            assert (done == 5).all() and by.unique().tolist() == list(range(parts)) and by.diff().ge(0).all()
            assert by.bincount().max() - by.bincount().min() <= 1


@pytest.mark.parametrize("team", [1, 2, 5])
def test_as_many_threads_as_there_are_do_all_parts(team: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP may give fewer than it is asked for, or the work may be done before the others come."""

    def openmp(address: int, job: Any, _parts: int, _flags: int) -> None:
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        for _ in range(team):
            function(ctypes.addressof(job))

    monkeypatch.setattr(threads, "_openmp", lambda: openmp)
    done, by = torch.zeros(2, 100, dtype=torch.long)
    counted(4, 100, done, by, 1)
    assert (done == 1).all() and by.unique().tolist() == [0, 1, 2, 3]


def test_several_callers_at_once_are_in_no_others_way() -> None:
    def call(number: int) -> bool:
        done, by = torch.zeros(2, 4096, dtype=torch.long)
        for _ in range(50):
            counted(3, 4096, done, by, number)
        return bool((done == 50 * number).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(1, 9)))


@pytest.mark.skipif(not several(), reason="torch has no OpenMP here whose threads could be shared")
def test_work_is_divided_as_torch_divides_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    plenty = 100 * threads.LEAST
    assert parts_of(100, plenty) == 8 and parts_of(3, plenty) == 3
    assert parts_of(100, 5 * threads.LEAST) == 5, "a thread has to be worth it"
    assert parts_of(100, threads.LEAST - 1) == parts_of(0, 0) == 1


def test_where_torch_has_no_openmp_one_thread_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("sys.platform", "darwin")
        threads._openmp.cache_clear()
        assert not several() and parts_of(100, 100 * threads.LEAST) == 1
    threads._openmp.cache_clear()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x: x.int(), "torch.int32"),
        (lambda x: x[None], r"\(1, 7\)"),
        (lambda x: x[::2], r"\(2,\)"),
        (lambda x: x.to("meta"), "int64"),
        (lambda x: 3, "not 3"),
        (lambda x: x.numpy(), "not array"),
    ],
    ids=["dtype", "dimensions", "steps", "device", "number", "numpy"],
)
def test_what_a_kernel_cannot_read_is_refused(change: Callable[[Tensor], Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        counted(1, 7, ONES, change(ONES), 1)


def test_an_argument_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        counted(1, 7, ONES, ONES)


def test_attention_over_packed_entries_is_the_same_on_any_number_of_threads(on_threads: int) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 500, 16)
    query, own = torch.randn(1, 6, 1, 16), torch.randn(2, 1, 2, 3, 16)
    packed = Packed.of(keys, values, backend="numba")
    found = packed_attention(query, *own, packed, backend="numba")
    assert np.allclose(found, packed_attention(query, *own, packed), atol=1e-6)
