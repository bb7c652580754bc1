"""What passes over a prompt saw: the attention that methods choose by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Look:
    """What a recompute saw over all T chunk tokens, averaged over heads.

    `attention` `(N, Q, T)`: of the tokens that lead up to the answer, on N layers, where the model runs. `columns` are
    each chunk's.
    """

    attention: Tensor
    columns: list[Tensor]


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What some chunk tokens attend to: `witnesses` `(W,)` as columns of all T chunk tokens, their attention
    `witnessed` `(W, T)`, averaged over heads and layers, and each chunk's `columns`."""

    witnesses: Tensor
    witnessed: Tensor
    columns: list[Tensor]
