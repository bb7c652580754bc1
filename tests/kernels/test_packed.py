"""Attention over entries in four bits against plain attention over what they stand for, and how far off those are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.packed import FEW, GROUP, MOST, Packed, packed_attention
from samkv_kernels.softmax import Softmax
from samkv_kernels.sparse_attention import masked_attention
from tests.kernels.inputs import TOLERANCE, far, on, poisoned

BACKENDS: list[Backend] = ["torch", "numba"]


def drawn(groups: int, tokens: int, dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values `(G, N, D)`, some channels of the keys large in every token, as in real models."""
    keys, values = torch.randn(2, groups, tokens, dim)
    keys[..., : dim // 4] += 20 * torch.randn(groups, 1, dim // 4)
    return keys, values


@given(
    st.integers(1, 3), st.sampled_from([1, 2, 7]), st.integers(1, 9), st.integers(1, 12), st.integers(1, 70),
    st.sampled_from([4, 6]), st.none() | st.just(3.0), st.booleans(), st.booleans(), st.integers(0, 99),
    st.sampled_from(BACKENDS),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_it_is_attention_over_what_the_numbers_stand_for(
    groups: int, shared: int, asked: int, kept: int, count: int, dim: int, softcap: float | None, sunk: bool,
    masked: bool, seed: int, backend: Backend,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    query = torch.randn(1, groups * shared, asked, dim)
    keys, values = drawn(groups, count + kept, dim)
    packed = Packed.of(keys[:, :count], values[:, :count])
    live = keys[None, :, count:], values[None, :, count:]
    softmax = Softmax(softcap=softcap, sinks=torch.randn(groups * shared) if sunk else None)
    seen, also = torch.rand(asked, kept) < 0.5, torch.rand(asked, count) < 0.5
    seen[:, 0] = True
    got = packed_attention(query, *live, packed, *((seen, also) if masked else (None, None)), softmax, backend)
    mask = torch.cat([also, seen], 1)[None, None] if masked else None
    whole = [torch.cat([old[None], new], 2) for old, new in zip(packed.entries(), live, strict=True)]
    torch.testing.assert_close(got, masked_attention(query, *whole, mask, softmax), rtol=1e-4, atol=1e-4)


def off_and_dtype(dtype: torch.dtype, seed: int, backend: Backend) -> tuple[float, torch.dtype]:
    """How far the output is from plain attention over what the numbers stand for, and its dtype."""
    torch.manual_seed(seed)
    query, keys, values = (torch.randn(1, heads, tokens, 64).to(dtype) for heads, tokens in ((6, 1), (2, 90), (2, 90)))
    packed = Packed.of(keys[0, :, :70], values[0, :, :70])
    got = packed_attention(query, keys[:, :, 70:], values[:, :, 70:], packed, backend=backend)
    old = [each[None] for each in packed.entries()]
    whole = [torch.cat([one, new[:, :, 70:].float()], 2) for one, new in zip(old, (keys, values), strict=True)]
    return far(got, masked_attention(query.float(), *whole, None)), got.dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_is_of_the_querys_dtype_and_in_its_tolerance(dtype: torch.dtype, backend: Backend) -> None:
    off, found = off_and_dtype(dtype, 0, backend)
    assert found == dtype
    assert off < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(1, 12))
def test_other_draws_are_in_the_tolerance_too(seed: int, backend: Backend) -> None:
    """With a channel's smallest value instead of its middle, a sixth of 300 draws was not: what is summed separately
    nearly cancels."""
    assert off_and_dtype(torch.float32, seed, backend)[0] < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("dim", [2, 6, 64, 80, 256])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
def test_compiled_products_are_those_of_the_reference(rows: int, dim: int, count: int, on_threads: int) -> None:
    """In memory full of NaN, from keys of a size that fp16 does not hold; larger sums are none the less precise."""
    with poisoned("cpu"):
        keys, values = (1e6 * each for each in drawn(3, count, dim))
        packed, asked, weights = Packed.of(keys, values), torch.randn(3, rows, dim), torch.rand(3, rows, count)
        stood_for = [each.double() for each in packed.entries()]
        got = packed.scores(asked, "numba"), packed.mixed(weights, "numba")
        entries = packed.entries("numba")
    assert all(far(*pair) < TOLERANCE[torch.float32] / 10 for pair in zip(entries, stood_for, strict=True))
    assert far(got[0], asked.double() @ stood_for[0].mT) < TOLERANCE[torch.float32]
    assert far(got[1], weights.double() @ stood_for[1]) < TOLERANCE[torch.float32]


def test_compiled_products_of_what_is_not_a_number_are_none() -> None:
    packed = Packed.of(*drawn(1, 40, 8))
    asked, weights = torch.randn(1, 2, 8), torch.rand(1, 2, 40)
    asked[0, 1, 3], weights[0, 1, 39] = torch.nan, torch.inf
    found = packed.scores(asked, "numba"), packed.mixed(weights, "numba")
    assert all(each[0, 0].isfinite().all() and not each[0, 1].isfinite().any() for each in found)


@given(st.integers(1, 3), st.integers(1, 100), st.integers(1, 9), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(
    groups: int, tokens: int, dim: int, size: float, seed: int
) -> None:  # fmt: skip
    """A step of a key's channel in 32 neighbouring tokens, or of a token's value; fp16 rounds both ends of it."""
    torch.manual_seed(seed)
    keys, values = (size * each for each in drawn(groups, tokens, dim))
    for entries, found, by_channel in zip(
        (keys, values), Packed.of(keys, values).entries(), (True, False), strict=True
    ):
        dim_of, size = (-2, GROUP) if by_channel else (-1, 1)
        for old, new in zip(entries.split(size, 1), found.split(size, 1), strict=True):
            step = (old.amax(dim_of, keepdim=True) - old.amin(dim_of, keepdim=True)) / MOST
            slack = 2e-3 * old.abs().amax() + 1e-4
            assert ((new - old).abs() <= step / 2 + slack).all()


def test_numbers_too_large_for_half_precision_are_none_the_worse() -> None:
    keys, values = (1e6 * each for each in drawn(1, 40, 8))
    found = Packed.of(keys, values).entries()
    assert all(each.isfinite().all() for each in found)
    assert (found[1] - values).abs().max() < values.abs().max() / 10


def test_numbers_close_together_and_far_from_zero_keep_their_middle() -> None:
    """fp16 has steps there that are larger than the whole spread of such numbers: the smallest, from which all are
    measured, is rounded down."""
    torch.manual_seed(0)
    far = torch.linspace(300, 390, 64) + 0.02 * torch.randn(1, 320, 64)
    shift = (Packed.of(far, far).entries()[0] - far).unflatten(1, (-1, GROUP)).mean(2)
    assert shift.abs().max() < 0.25 / MOST, "a step of fp16 there, by sixteen"


def test_what_is_alike_everywhere_is_exact_and_what_is_not_is_rounded() -> None:
    alike = torch.full((2, 50, 8), 3.25)
    assert all(torch.equal(each, alike) for each in Packed.of(alike, alike).entries())
    keys, values = drawn(2, 50, 8)
    assert (Packed.of(keys, values).entries()[0] - keys).abs().max() > 1e-2


@given(
    st.integers(1, 3), st.integers(1, 100), st.integers(1, 70), st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.booleans(), st.integers(0, 99),
    st.sampled_from([1, 3]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_compiled_rounding_gives_the_very_same(
    groups: int, tokens: int, dim: int, size: float, dtype: torch.dtype, alike: bool, seed: int, threads: int
) -> None:
    torch.manual_seed(seed)
    keys, values = (size * each for each in drawn(groups, tokens + 19, dim))
    if alike:
        keys, values = torch.full_like(keys, size), torch.zeros_like(values)
    keys, values = keys.to(dtype), values.to(dtype)
    at = torch.randperm(tokens + 9)[:tokens].sort().values
    with on(threads):
        live = keys[:, : tokens + 9], values[:, : tokens + 9]  # of a cache, with room after each head
        one, other = (Packed.of(*live, at, backend) for backend in BACKENDS)
    for mine, wanted in ((one.keys, other.keys), (one.values, other.values)):
        assert torch.equal(mine.codes, wanted.codes) and mine.exponent == wanted.exponent
        torch.testing.assert_close(mine.steps, wanted.steps, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", [[0, 40], [-1, 0], [10**9]])
def test_a_token_that_is_not_there_is_an_error(at: list[int], backend: Backend) -> None:
    keys, values = drawn(2, 40, 8)
    with pytest.raises((IndexError, RuntimeError)):
        Packed.of(keys, values, torch.tensor(at), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "weights"),
    [((2, 1, 9), (2, 1, 65)), ((2, 1, 6), (2, 1, 20)), ((3, 1, 8), (3, 1, 40))],
)
def test_what_does_not_fit_is_an_error(rows: tuple[int, ...], weights: tuple[int, ...], backend: Backend) -> None:
    packed = Packed.of(*drawn(2, 40, 8), backend=backend)
    with pytest.raises((ValueError, RuntimeError)):
        packed.scores(torch.rand(rows), backend)
    with pytest.raises((ValueError, RuntimeError)):
        packed.mixed(torch.rand(weights), backend)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_does_not_become_one(backend: Backend, odd: float) -> None:
    keys, values = drawn(1, 70, 8)
    keys[0, 40, 3] = values[0, 41, 2] = odd
    packed = Packed.of(keys, values, backend=backend)
    assert not packed.scores(torch.rand(1, 1, 8), backend)[0, 0, 40].isfinite()
    assert not packed.mixed(torch.rand(1, 1, 70), backend).isfinite().all()


@pytest.mark.parametrize(("dim", "bits"), [(64, 4.75), (128, 4.625)])
def test_a_number_takes_less_than_five_bits(dim: int, bits: float) -> None:
    keys, values = drawn(2, 32 * GROUP, dim)
    assert 8 * Packed.of(keys, values).nbytes == bits * (keys.numel() + values.numel())
