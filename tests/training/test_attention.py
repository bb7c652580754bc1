"""The attention of training rows is plain attention: the same values and gradients, computed in pieces."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from training import attention
from training.attention import as_bias, attend


def rows(split: int, length: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries, keys and values of two rows with four heads in two groups; the mask of the questions, and of all."""
    torch.manual_seed(split)
    inputs = [torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
    asked = torch.rand(2, 1, length - split, length) < 0.6
    asked[..., 0] = True
    causal = torch.ones(split, length, dtype=torch.bool).tril().expand(2, 1, split, length)
    return inputs, asked, torch.cat([causal, asked], 2)


@pytest.mark.parametrize(("split", "length"), [(40, 61), (7, 40), (33, 33), (1, 2)])
def test_pieces_are_attention(monkeypatch: pytest.MonkeyPatch, split: int, length: int) -> None:
    monkeypatch.setattr(attention, "PIECE", 16)
    inputs, asked, mask = rows(split, length)
    q, k, v = inputs
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = attend(q, k, v, as_bias(asked), split)
    assert torch.allclose(found, expected, atol=1e-5)
    upwards = torch.randn_like(expected)
    wanted, given = (torch.autograd.grad(out, inputs, upwards) for out in (expected, found))
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(given, wanted, strict=True))


def test_in_bfloat16_it_stays_within_its_precision() -> None:
    inputs, asked, mask = rows(40, 61)
    q, k, v = inputs
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = attend(q, k, v.bfloat16(), as_bias(asked), 40)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 1e-2 * expected.norm()
