"""What heads that are fitted in closed form carry: the beginning of the name that a value is stated of."""

import torch
from tokenizers import Tokenizer

from training.attention import attend
from training.carry import carry, ridge, with_space
from training.export import WEIGHTS
from training.model import Attention, Shape

SHAPE = Shape(hidden=24, layers=1, heads=4, kv_heads=2, head_dim=6, mlp=8)


def test_a_head_brings_what_it_reads_to_where_it_writes() -> None:
    torch.manual_seed(0)
    attention, x = Attention(SHAPE), torch.randn(1, 1, 24)
    read, offset, write = torch.randn(6, 24), torch.randn(6), torch.randn(24, 6)
    others = [head for head in range(4) if head != 1]
    with torch.no_grad():
        for head in others:
            attention.o_proj.weight[:, head * 6 : head * 6 + 6] = 0
        attention.o_proj.bias.zero_()
        carry(attention, 1, read, offset, write)
        parts = attention.project(x[0], torch.ones(1, 1, 3), torch.zeros(1, 1, 3))
        seen = attend(*(part[None].transpose(1, 2) for part in parts), torch.zeros(1, 1, 0, 1), 1)
        found = attention.o_proj(seen.flatten())
    assert torch.allclose(found, write @ (read @ x[0, 0] + offset), atol=1e-5)


def test_heads_that_share_values_fall_silent() -> None:
    attention = Attention(SHAPE)
    with torch.no_grad():
        before = attention.o_proj.weight.clone()
        carry(attention, 3, torch.zeros(6, 24), torch.zeros(6), torch.ones(24, 6))
    assert (attention.o_proj.weight[:, 12:18] == 0).all() and (attention.o_proj.weight[:, 18:] == 1).all()
    assert torch.equal(attention.o_proj.weight[:, :12], before[:, :12])


def test_ridge_finds_an_affine_map() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(4000, 5), torch.randn(3, 5)
    found, offset = ridge(x, x @ weights.T + 2)
    assert torch.allclose(found, weights, atol=1e-2) and torch.allclose(offset, torch.full((3,), 2.0), atol=1e-2)


def test_beginnings_of_chunks_are_said_with_a_space() -> None:
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    other = with_space(pieces)
    assert other and all(pieces[spaced] == " " + pieces[token] for token, spaced in other.items())
