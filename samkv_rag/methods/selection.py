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
    if not any(quota):
        return list(torch.zeros(sum(lengths), dtype=torch.bool).split(list(lengths)))
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
        return [standardised(chunk.blocks) for chunk in scores]
    together = torch.cat([chunk.blocks for chunk in scores], 1)
    return list(standardised(together).split([chunk.blocks.shape[1] for chunk in scores], 1))


def standardised(values: Tensor) -> Tensor:
    """Values `(N, B)` with mean 0 and deviation 1 in every row."""
    above = values - values.mean(1, keepdim=True)
    return above / above.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def choose(
    scores: Sequence[ChunkScores], anchors: Sequence[Tensor], budget: int, block: int, *,
    shares: Sequence[float], per_chunk: bool, fill: bool, filtered: bool = True,
) -> Choice:  # fmt: skip
    """Anchors plus the best blocks of all chunks, at most `budget` tokens on the union over the selection layers.

    Each layer's candidates are the top `floor(share_i * blocks)` of every chunk. With `filtered` all candidates of all
    chunks compete (SamKV, cross-context comparison); without, chunks take turns. `fill` goes on behind the candidates
    until the budget is full; the last block may be cut to fit.
    """
    ranks, lengths = normalised(scores, per_chunk), [len(mask) for mask in anchors]
    candidates = torch.cat([_top(*each, block) for each in zip(ranks, anchors, shares, strict=True)], 1)
    values = [rank.amax(0) for rank in ranks] if per_chunk else _best_of_layers(ranks)
    places = _queue(values, candidates.any(0), fill, filtered)
    owner = _blocks_of_tokens(lengths, [len(value) for value in values], block)
    fixed = torch.cat(list(anchors))
    kept = _taken(places[owner], fixed, budget)
    per_layer = (candidates[:, owner] | fixed) & kept
    spread = torch.cat(list(values))[owner]
    return Choice(
        list(kept.split(lengths)), list(anchors), list(per_layer.split(lengths, 1)), list(spread.split(lengths))
    )


def _best_of_layers(ranks: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.cat(list(ranks), 1).amax(0).split([rank.shape[1] for rank in ranks]))


def _blocks_of_tokens(lengths: Sequence[int], counts: Sequence[int], block: int) -> Tensor:
    """The block `(T,)` of every token among the blocks of all chunks, of which they have `counts`."""
    if block == 1:
        return torch.arange(sum(lengths))
    sizes = torch.cat([block_sizes(length, count, block) for length, count in zip(lengths, counts, strict=True)])
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def best_tokens(values: Sequence[Tensor], budget: int) -> Chosen:
    """Per chunk the sorted tokens that are among the `budget` largest values of all chunks; of equals the first."""
    return tokens_of(_largest(torch.cat(list(values)), budget), [len(value) for value in values])


def _largest(values: Tensor, count: int) -> Tensor:
    """Bool `(T,)`: the `count` largest values; of equals the first. A sort would take ten times as long.

    What is not a number counts as the largest, as in a sort: there are `count` in any case."""
    if not 0 < count < len(values):
        return torch.full((len(values),), count > 0)
    values = values.nan_to_num(float("inf"), float("inf"), float("-inf"))
    least = values.kthvalue(len(values) - count + 1).values
    above, level = values > least, values == least
    return above | (level & (level.cumsum(0) <= count - above.sum()))


def tokens_of(marks: Tensor, lengths: Sequence[int]) -> Chosen:
    """Per chunk the sorted tokens that are marked in a bool `(T,)` over the tokens of all."""
    stops = torch.tensor(lengths, dtype=torch.long).cumsum(0)
    at = marks.nonzero()[:, 0]
    owner = torch.searchsorted(stops, at, right=True)
    inside = at - (stops - torch.tensor(lengths, dtype=torch.long))[owner]
    return tuple(inside.split(torch.bincount(owner, minlength=len(lengths)).tolist()))


def best_of(choice: Choice, chosen: Sequence[Tensor], count: int) -> Chosen:
    """The best `count` of the tokens `chosen`, per chunk, by the choice's values."""
    lengths = [len(value) for value in choice.value]
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    at = torch.cat(list(chosen)) + starts.repeat_interleave(torch.tensor([len(few) for few in chosen]))
    value = torch.cat(choice.value)
    best = at[_largest(value[at], count)]
    return tokens_of(torch.zeros(len(value), dtype=torch.bool).index_fill_(0, best, True), lengths)


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


def _top(rank: Tensor, anchors: Tensor, share: float, block: int) -> Tensor:
    """Bool `(N, B)`: each layer's best blocks among those the anchors do not already cover."""
    layers, blocks = rank.shape
    covered = anchors
    if block > 1:
        padded = torch.nn.functional.pad(anchors, (0, -len(anchors) % block), value=True)
        covered = padded.view(-1, block).all(1)
    if share >= 1:
        return (~covered).expand(layers, -1)
    count = int(share * int((~covered).sum()))
    chosen = torch.zeros(layers, blocks, dtype=torch.bool)
    if count:
        best = rank.masked_fill(covered, float("-inf")).topk(count, dim=1).indices
        chosen.scatter_(1, best, True)
    return chosen


def _queue(values: Sequence[Tensor], chosen: Tensor, fill: bool, filtered: bool) -> Tensor:
    """Every block's place `(sum B,)` in the order in which they are taken: candidates first, then the rest if `fill`.

    Without `fill` the rest has the place infinity. Of equals the first comes first. Where all blocks are candidates
    and compete, their values say it: they need no sorting.
    """
    if filtered and bool(chosen.all()):
        return -torch.cat(list(values))
    rank = -torch.cat(list(values)) if filtered else torch.cat([_places(-value).float() for value in values])
    order = rank.argsort(stable=True)
    first = chosen[order]
    order = torch.cat([order[first], order[~first]])
    places = _inverse(order).float()
    return places if fill else places.masked_fill(~chosen, float("inf"))


def _places(values: Tensor) -> Tensor:
    return _inverse(values.argsort(stable=True))


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _taken(places: Tensor, anchors: Tensor, budget: int) -> Tensor:
    """The anchors, and the tokens with the first `places` until there are `budget` in all: bool `(T,)`."""
    place = places.masked_fill(anchors, float("inf"))
    return anchors | (_largest(-place, budget - int(anchors.sum())) & (place != float("inf")))


def split_recompute(choice: Choice, share: float, by: str) -> tuple[Tensor, ...]:
    """The recomputed tokens per chunk: `floor(share * kept)` in all, the best-ranked blocks' first (`by` "score") or
    the first tokens of every kept run (`by` "head")."""
    kept = torch.cat(choice.kept)
    priority = torch.cat(choice.value if by == "score" else [-_depth(mask) for mask in choice.kept])
    again = _largest(priority.masked_fill(~kept, float("-inf")), int(share * int(kept.sum())))
    return tokens_of(again, [len(mask) for mask in choice.kept])


def _depth(kept: Tensor) -> Tensor:
    """How far each kept token stands behind the start of its run of kept ones, fp32."""
    at, starts = torch.arange(len(kept)), kept.clone()
    starts[1:] &= ~kept[:-1]
    return (at - (at * starts).cummax(0).values).float()


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
