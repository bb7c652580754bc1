"""What the kernels should compute, in float64 and one element at a time; nothing here calls what is tested."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor


def gathered(kv: Tensor, rows: list[int], cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Keys turned by `cos`, `sin` `(L, T, W / 2)`, and values, `(L, G, T, D)`, of blocks `kv` `(L, B, 2, G, S, D)`."""
    layers, _, _, heads, size, dim = kv.shape
    keys, values = (torch.zeros(layers, heads, len(rows), dim, dtype=torch.float64) for _ in range(2))
    half = cos.shape[-1]
    for layer, head, (slot, row) in product(range(layers), range(heads), enumerate(rows)):
        if row < 0:
            continue
        key, value = kv[layer, row // size, :, head, row % size].double()
        turned = key.clone()
        for pair in range(half):
            one, two = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
            c, s = cos[layer, slot, pair].double(), sin[layer, slot, pair].double()
            turned[one] = key[one] * c - key[two] * s
            turned[two] = key[two] * c + key[one] * s
        keys[layer, head, slot], values[layer, head, slot] = turned, value
    return keys, values


def highest_logit(query: Tensor, low: Tensor, high: Tensor) -> float:
    """The largest q . k / sqrt(D) over all corners k of the box from `low` to `high`, `(D,)` each."""
    corners = product(*zip(low.double().tolist(), high.double().tolist(), strict=True))
    asked = query.double().tolist()
    return max(sum(map(float.__mul__, asked, corner)) for corner in corners) / math.sqrt(len(asked))


def logits(query: Tensor, mean: Tensor, counts: list[int], group_of: list[int]) -> Tensor:
    """`(L, H, Q, B)` from queries `(C, L, H, Q, D)`, means `(L, B, G, D)`; `group_of[h]` is the key head of head h."""
    chunk_of = [chunk for chunk, count in enumerate(counts) for _ in range(count)]
    _, layers, heads, asked, dim = query.shape
    out = torch.empty(layers, heads, asked, len(chunk_of), dtype=torch.float64)
    for layer, head, token, block in product(*map(range, out.shape)):
        q = query[chunk_of[block], layer, head, token].double()
        out[layer, head, token, block] = q @ mean[layer, block, group_of[head]].double() / math.sqrt(dim)
    return out


def attention(
    query: Tensor, key: Tensor, value: Tensor, query_at: Tensor, key_at: Tensor, window: int | None,
    softcap: float | None, sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output `(B, H, Q, D)`, and weights averaged over heads `(B, Q, T)`, by positions `(B, Q)` and `(B, T)`."""
    batch, heads, asked, dim = query.shape
    rep = heads // key.shape[1]
    out, shares = torch.zeros(query.shape, dtype=torch.float64), torch.zeros(batch, asked, key.shape[2]).double()
    for one, head, row in product(range(batch), range(heads), range(asked)):
        here = int(query_at[one, row])
        near = -math.inf if window is None else here - window
        seen = [slot for slot, at in enumerate(key_at[one].tolist()) if near < at <= here]
        if not seen:
            continue
        scores = key[one, head // rep, seen].double() @ query[one, head, row].double() / math.sqrt(dim)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks[head : head + 1].double()])
        weights = scores.softmax(0)[: len(seen)]
        out[one, head, row] = weights @ value[one, head // rep, seen].double()
        shares[one, row, seen] += weights / heads
    return out, shares
