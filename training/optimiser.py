"""Muon for the matrices inside the layers, AdamW for the rest.

Muon's step is the semi-orthogonal matrix nearest to the momentum (K. Jordan, 2024), scaled to the size of an AdamW step
(Liu et al. 2025, arXiv 2502.16982). torch.optim.Muon computes it in bfloat16, one matrix at a time: on a processor
without bfloat16 arithmetic that costs more than the rest of the update. Here equal shapes are stacked, in fp32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz, from the post


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V^T of every matrix U S V^T in [N, A, B]: singular values between 0.7 and 1.2."""
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT.contiguous() if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; for matrices only."""

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        for group in self.param_groups:
            weights = group["params"]
            grads = [weight.grad for weight in weights]
            means = [self.state[weight].setdefault("mean", torch.zeros_like(weight)) for weight in weights]
            torch._foreach_lerp_(means, grads, 1 - group["momentum"])
            changes = _by_shape(torch._foreach_lerp(grads, means, group["momentum"]))
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, changes, alpha=-group["lr"])


def _by_shape(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The step for each matrix; those of one shape are computed together."""
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        shapes[matrix.shape].append(number)
    found = dict[int, Tensor]()
    for shape, numbers in shapes.items():
        steps = orthogonal(torch.stack([matrices[number] for number in numbers])) * (0.2 * max(shape) ** 0.5)
        found |= zip(numbers, steps.unbind(), strict=True)
    return [found[number] for number in range(len(matrices))]


def rate_at(progress: float, step: int, options: Mapping[str, Any]) -> float:
    """Learning rate: warm-up by steps, plateau, linear fall to the `least` share over the last `decay` part of a run;
    `progress` (0 to 1) is how much of it is over."""
    left = (1 - progress) / options["decay"]
    share = min(1.0, (step + 1) / options["warmup"]) * max(options["least"], min(1.0, left))
    return float(options["rate"] * share)


@torch.no_grad()
def follow(average: Sequence[Tensor], weights: Sequence[Tensor], step: int, updates: int) -> None:
    """Let the average of the weights, which is what is exported, follow them: it covers the last tenth of all updates,
    at most `updates` of them."""
    torch._foreach_lerp_(list(average), list(weights), max(1 / updates, 10 / (step + 10)))


class Optimiser:
    """Both optimisers as one, with what training needs of them."""

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        named = list(model.named_parameters())
        inner = [w for name, w in named if w.dim() == 2 and "embed" not in name and "lm_head" not in name]
        outer = [w for _, w in named if not any(w is one for one in inner)]
        self.parts: list[torch.optim.Optimizer] = [
            Muon(inner, 1e-3, weight_decay),
            torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, rate: float) -> None:
        """One update at this learning rate; clears the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of both."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
