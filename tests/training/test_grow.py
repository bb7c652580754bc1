"""An enlarged reader produces the logits it produced before, and can learn with what is new."""

import torch

from training.grow import deeper, wider
from training.model import Reader, Shape

OLD = Shape(vocab=40, hidden=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp=8)
NEW = Shape(vocab=40, hidden=24, layers=5, heads=4, kv_heads=2, head_dim=6, mlp=12)


def logits(reader: Reader) -> torch.Tensor:
    ids = torch.arange(14)[None] % 40
    mask = torch.ones(1, 1, 4, 14, dtype=torch.bool).tril(10)
    found, _ = reader(ids, torch.arange(14)[None], mask, 10, torch.arange(14))
    return found


def grown() -> tuple[Reader, Reader]:
    torch.manual_seed(0)
    old, new, generator = Reader(OLD), Reader(NEW), torch.Generator().manual_seed(1)
    new.load_state_dict(wider(deeper(old.state_dict(), 1, 2, generator), NEW.mlp, generator))
    return old, new


def test_a_grown_reader_says_the_same() -> None:
    old, new = grown()
    assert torch.allclose(logits(new), logits(old), atol=1e-5)
    with torch.no_grad():
        new.model.blocks[2].self_attn.o_proj.weight += 0.1
    assert not torch.allclose(logits(new), logits(old), atol=1e-3)


def test_what_is_new_gets_gradients() -> None:
    _, new = grown()
    logits(new).square().sum().backward()
    for layer in (new.model.blocks[2], new.model.blocks[3]):
        assert layer.self_attn.o_proj.weight.grad.abs().max() > 0  # type: ignore[union-attr]
        assert layer.mlp.down_proj.weight.grad.abs().max() > 0  # type: ignore[union-attr]
