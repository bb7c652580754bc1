"""Which tokens stay: anchors, dynamic shares, the cross-context filter and the budget (SamKV, KV selection module).

Pure functions of scores and lengths; sizes are tokens unless a name says blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.types import Ranking

Chosen = tuple[Tensor, ...]
"""Per chunk the sorted indices of some of its tokens."""


@dataclass(frozen=True, slots=True)
class ChunkScores:
    """Scores of one chunk's selection blocks on the selection layers: `blocks` `(N, B)`; `anchor` `(B,)` marks the
    blocks that the initial and local anchors touch."""

    blocks: Tensor
    anchor: Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """`kept` and `anchors` per chunk: bool `(n_i,)`. `per_layer` per chunk: bool `(N, n_i)`, the kept tokens that each
    selection layer chose itself, anchors included. `value` per chunk: fp32 `(n_i,)`, the rank of the token's block."""

    kept: list[Tensor]
    anchors: list[Tensor]
    per_layer: list[Tensor]
    value: list[Tensor]

    def ranking(self, block: int) -> Ranking:
        """The anchors and the blocks' ranks, for whoever wants to see why."""
        anchors = tuple((mask & kept).nonzero()[:, 0] for mask, kept in zip(self.anchors, self.kept, strict=True))
        return Ranking(anchors, tuple(self.value), block)


def anchor_masks(
    lengths: Sequence[int], initial: int, local: int, limit: int, order: Sequence[int] | None = None
) -> list[Tensor]:
    """Bool `(n_i,)` per chunk: its first `initial` and last `local` tokens, trimmed to at most `limit` in all.

    Trimming is even over the chunks; with fewer tokens than chunks, the first chunks of `order` get one each.
    """
    wanted = [min(length, initial + local) for length in lengths]
    quota = _even_quota(wanted, limit, order if order is not None else range(len(lengths)))
    masks = []
    for length, tokens in zip(lengths, quota, strict=True):
        head = min(initial, -(-tokens * initial // max(1, initial + local)))
        mask = torch.zeros(length, dtype=torch.bool)
        mask[:head] = True
        mask[length - (tokens - head) :] = True
        masks.append(mask)
    return masks


def _even_quota(wanted: Sequence[int], limit: int, order: Sequence[int]) -> list[int]:
    """The largest even shares of `limit`: who wants less leaves the rest to the others."""
    quota = [0] * len(wanted)
    left, open_chunks = min(limit, sum(wanted)), [index for index in order if wanted[index]]
    while left > 0 and open_chunks:
        share = max(1, left // len(open_chunks))
        for index in open_chunks[: left // share]:
            given = min(share, wanted[index] - quota[index])
            quota[index] += given
            left -= given
        open_chunks = [index for index in open_chunks if quota[index] < wanted[index]]
    return quota


def dynamic_share(scores: ChunkScores) -> float:
    """P of one chunk (SamKV, eq. 2 as re-implemented): the part of the middle blocks' score range that lies above the
    anchors' score, clamped to [0, 1], 1 when all middle blocks score alike; averaged over the selection layers."""
    middle = scores.blocks[:, ~scores.anchor]
    if middle.shape[1] == 0:
        return 1.0
    high, low = middle.amax(1), middle.amin(1)
    anchor = scores.blocks[:, scores.anchor].mean(1) if scores.anchor.any() else low
    spread = high - low
    share = torch.where(spread > 0, (high - anchor) / spread.clamp(min=1e-30), torch.ones_like(spread))
    return float(share.clamp(0, 1).mean())


def normalised(scores: Sequence[ChunkScores], per_chunk: bool) -> list[Tensor]:
    """Scores with mean 0 and deviation 1 on every layer, over each chunk alone or over all chunks together."""
    if per_chunk:
        return [_standard(chunk.blocks, chunk.blocks) for chunk in scores]
    return standardised([chunk.blocks for chunk in scores])


def standardised(parts: Sequence[Tensor]) -> list[Tensor]:
    """Values `(N, B)` of every chunk with mean 0 and deviation 1 in every row over all chunks together."""
    together = torch.cat(list(parts), 1)
    return [_standard(part, together) for part in parts]


def _standard(x: Tensor, reference: Tensor) -> Tensor:
    centre = reference.mean(1, keepdim=True)
    return (x - centre) / (reference - centre).square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def choose(
    scores: Sequence[ChunkScores], anchors: Sequence[Tensor], budget: int, block: int, *,
    shares: Sequence[float], per_chunk: bool, fill: bool, filtered: bool = True,
) -> Choice:  # fmt: skip
    """Anchors plus the best blocks of all chunks, at most `budget` tokens on the union over the selection layers.

    Each layer's candidates are the top `floor(share_i * blocks)` of every chunk. With `filtered` all candidates of all
    chunks compete (SamKV, cross-context comparison); without, chunks take turns. `fill` goes on behind the candidates
    until the budget is full; the last block may be cut to fit.
    """
    ranks = normalised(scores, per_chunk)
    candidates = [_top(rank, scores[i], anchors[i], shares[i], block) for i, rank in enumerate(ranks)]
    values = [rank.amax(0) for rank in ranks]
    places = _queue(values, candidates, fill, filtered).split([len(value) for value in values])
    kept = _taken(
        [_by_token(place, block, anchor) for place, anchor in zip(places, anchors, strict=True)], anchors, budget
    )
    per_layer = [_per_layer(candidates[i], kept[i], anchors[i], block) for i in range(len(kept))]
    spread = [_by_token(value, block, mask) for value, mask in zip(values, kept, strict=True)]
    return Choice(kept, list(anchors), per_layer, spread)


def best_tokens(values: Sequence[Tensor], budget: int) -> tuple[Tensor, ...]:
    """Per chunk the sorted tokens that are among the `budget` largest values of all chunks; of equals the first."""
    chosen = torch.zeros(sum(map(len, values)), dtype=torch.bool)
    chosen[torch.cat(list(values)).argsort(descending=True, stable=True)[:budget]] = True
    return tuple(part.nonzero()[:, 0] for part in chosen.split([len(value) for value in values]))


def shortlist(scores: Sequence[ChunkScores], lengths: Sequence[int], limit: int, block: int) -> list[Tensor]:
    """Per chunk the sorted tokens of the best blocks of all chunks: whole blocks, best first, until `limit` tokens."""
    values = [rank.amax(0) for rank in normalised(scores, per_chunk=False)]
    sizes = torch.cat([block_sizes(length, len(value), block) for length, value in zip(lengths, values, strict=True)])
    order = torch.cat(values).argsort(descending=True, stable=True)
    before = sizes[order].cumsum(0) - sizes[order]
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[order[before < limit]] = True
    parts = chosen.split([len(value) for value in values])
    masks = [part.repeat_interleave(block)[:length] for part, length in zip(parts, lengths, strict=True)]
    return [mask.nonzero()[:, 0] for mask in masks]


def block_sizes(length: int, blocks: int, block: int) -> Tensor:
    """Tokens `(B,)` of a chunk's blocks: the last has what is left."""
    sizes = torch.full((blocks,), block)
    sizes[-1] = length - block * (blocks - 1)
    return sizes


def _top(rank: Tensor, scores: ChunkScores, anchors: Tensor, share: float, block: int) -> Tensor:
    """Bool `(N, B)`: each layer's best blocks among those the anchors do not already cover."""
    layers, blocks = rank.shape
    padded = torch.nn.functional.pad(anchors, (0, -len(anchors) % block), value=True)
    covered = padded.view(-1, block).all(1)
    count = int(share * int((~covered).sum()))
    chosen = torch.zeros(layers, blocks, dtype=torch.bool)
    if count:
        best = rank.masked_fill(covered, float("-inf")).topk(count, dim=1).indices
        chosen.scatter_(1, best, True)
    return chosen


def _queue(values: Sequence[Tensor], candidates: Sequence[Tensor], fill: bool, filtered: bool) -> Tensor:
    """Every block's place `(sum B,)` in the order in which they are taken: candidates first, then the rest if `fill`.

    Without `fill` the rest has the place infinity. Of equals the first comes first.
    """
    chosen = torch.cat([part.any(0) for part in candidates])
    rank = torch.cat([-value if filtered else _places(-value).float() for value in values])
    order = rank.argsort(stable=True)
    order = order[(~chosen[order]).int().argsort(stable=True)]
    places = _inverse(order).float()
    return places if fill else places.masked_fill(~chosen, float("inf"))


def _places(values: Tensor) -> Tensor:
    return _inverse(values.argsort(stable=True))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _by_token(blocks: Tensor, block: int, like: Tensor) -> Tensor:
    """Every token's value `(n,)` from its block's."""
    return blocks.repeat_interleave(block)[: len(like)]


def _taken(places: Sequence[Tensor], anchors: Sequence[Tensor], budget: int) -> list[Tensor]:
    """The anchors, and the tokens with the first places until there are `budget` in all."""
    kept = torch.cat(list(anchors))
    place = torch.cat(list(places)).masked_fill(kept, float("inf"))
    order = place.argsort(stable=True)[: max(0, budget - int(kept.sum()))]
    kept[order[place[order] < float("inf")]] = True
    return list(kept.split([len(mask) for mask in anchors]))


def _per_layer(candidates: Tensor, kept: Tensor, anchors: Tensor, block: int) -> Tensor:
    tokens = candidates.repeat_interleave(block, 1)[:, : len(kept)]
    return (tokens | anchors) & kept


def split_recompute(choice: Choice, share: float, by: str) -> tuple[Tensor, ...]:
    """The recomputed tokens per chunk: `floor(share * kept)` in all, the best-ranked blocks' first (`by` "score") or
    the first tokens of every kept run (`by` "head")."""
    kept = [mask.nonzero()[:, 0] for mask in choice.kept]
    priority = [choice.value[i][tokens] if by == "score" else -_depth(tokens) for i, tokens in enumerate(kept)]
    again = best_tokens(priority, int(share * sum(map(len, kept))))
    return tuple(tokens[part] for tokens, part in zip(kept, again, strict=True))


def _depth(tokens: Tensor) -> Tensor:
    """How far each sorted index stands behind the start of its run of consecutive indices, fp32."""
    starts = torch.ones(len(tokens), dtype=torch.bool)
    starts[1:] = tokens[1:] != tokens[:-1] + 1
    return (tokens - tokens[starts][starts.long().cumsum(0) - 1]).float()


def aligned_rows(choice: Choice, layers: Sequence[int], n_layers: int) -> list[Tensor]:
    """Per model layer a bool over all kept tokens in prompt order: what it stores under layer alignment (SamKV,
    recompute module): the union of what the selection layers at or above it chose, and the anchors."""
    rows = []
    for layer in range(n_layers):
        above = [index for index, chosen in enumerate(layers) if chosen >= layer]
        masks = [
            (own[above].any(0) | anchors)[kept]
            for own, anchors, kept in zip(choice.per_layer, choice.anchors, choice.kept, strict=True)
        ]
        rows.append(torch.cat(masks))
    return rows
