"""Which tokens are kept: anchors, dynamic shares, cross-context filter and budget (SamKV, KV selection module).

Pure functions of scores and lengths; sizes are in tokens unless a name says blocks. Scores may be on a GPU: where all
blocks compete, they are chosen there and the host does not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_kernels.repeating import repeated
from samkv_kernels.sending import sent
from samkv_rag.methods.picked import Picked, best_of, largest
from samkv_rag.types import Ranking


@dataclass(frozen=True, slots=True)
class ChunkScores:
    """Scores of one chunk's selection blocks on the selection layers: `blocks` `(N, B)`; `anchor` `(B,)` marks the
    blocks that the initial and local anchors touch."""

    blocks: Tensor
    anchor: Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen of some chunks: the `picked` tokens, `anchors` among them (bool `(n_i,)` per chunk). `candidates`
    bool `(N, B)`: the blocks that each selection layer would have chosen, `owner` `(T,)` being every token's block.
    `value` fp32 `(T,)`: the rank of the token's block. This and what was picked are where the scores are, if all blocks
    compete; the rest is on the host."""

    picked: Picked
    anchors: list[Tensor]
    candidates: Tensor
    owner: Tensor
    value: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of every chunk."""
        return [len(mask) for mask in self.anchors]

    @property
    def kept(self) -> list[Tensor]:
        """Bool `(n_i,)` per chunk, on the host."""
        return list(self.picked.marks.cpu().split(self.lengths))

    @property
    def per_layer(self) -> list[Tensor]:
        """Bool `(N, n_i)` per chunk: the kept tokens that each layer chose itself, anchors included."""
        chosen = (self.candidates[:, self.owner] | torch.cat(self.anchors)) & self.picked.marks.cpu()
        return list(chosen.split(self.lengths, 1))

    def ranking(self, block: int) -> Ranking:
        """The anchors and the blocks' ranks, which show why tokens were chosen."""
        anchors = tuple((mask & kept).nonzero()[:, 0] for mask, kept in zip(self.anchors, self.kept, strict=True))
        return Ranking(anchors, tuple(self.value.cpu().split(self.lengths)), block)


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


def ranked_anchors(
    lengths: Sequence[int], initial: int, local: int, limit: int, scores: Sequence[ChunkScores], anchors: list[Tensor]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """The `anchors`; with fewer anchor tokens than chunks, the lowest-scored chunks get none, and a note says so."""
    wanted = sum(min(length, initial + local) for length in lengths)
    if wanted <= limit:
        return anchors, ()
    if limit >= len(lengths):
        return anchors, (f"anchors were trimmed from {wanted} to {limit} tokens to leave room for selection",)
    order = sorted(range(len(lengths)), key=lambda index: -float(scores[index].blocks.max()))
    note = f"only {limit} anchor tokens for {len(lengths)} chunks: the lowest-scored chunks have none"
    return anchor_masks(lengths, initial, local, limit, order), (note,)


def _even_quota(wanted: Sequence[int], limit: int, order: Sequence[int]) -> list[int]:
    """The largest even shares of `limit`: a chunk that wants less leaves the rest to the others."""
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


def early_first(scores: Sequence[ChunkScores], block: int, early: float) -> list[ChunkScores]:
    """The scores, divided by `place ** early`, the place in its chunk of a block's first token, counted from 1: what
    comes early was stored with the least before it, and is changed most by the other chunks."""
    counts = [chunk.blocks.shape[1] for chunk in scores]
    places = torch.cat([torch.arange(1, count * block + 1, block) for count in counts])
    joined = torch.cat([chunk.blocks for chunk in scores], 1)
    joined = joined * sent(places**-early, joined.device)
    return [ChunkScores(part, chunk.anchor) for part, chunk in zip(joined.split(counts, 1), scores, strict=True)]


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


def normalised(scores: Sequence[ChunkScores], per_chunk: bool) -> Tensor:
    """Scores `(N, B)` of all chunks' blocks with mean 0 and deviation 1 on every layer, over each chunk alone or over
    all together."""
    if per_chunk:
        return torch.cat([standardised(chunk.blocks) for chunk in scores], 1)
    return standardised(torch.cat([chunk.blocks for chunk in scores], 1))


def standardised(values: Tensor) -> Tensor:
    """Values `(N, B)` with mean 0 and deviation 1 in every row."""
    above = values - values.mean(1, keepdim=True)
    return above / above.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def choose(
    scores: Sequence[ChunkScores], anchors: Sequence[Tensor], budget: int, block: int, *,
    shares: Sequence[float], per_chunk: bool, fill: bool, filtered: bool = True,
) -> Choice:  # fmt: skip
    """Anchors plus the best blocks of all chunks, at most `budget` tokens in the union over the selection layers.

    Each layer's candidates are the top `floor(share_i * blocks)` of every chunk. With `filtered` all candidates of all
    chunks compete (SamKV, cross-context comparison); without, chunks take turns. `fill` goes on after the candidates
    until the budget is full; the last block may be cut to fit.
    """
    ranks, lengths = normalised(scores, per_chunk), [len(mask) for mask in anchors]
    counts, everybody = [chunk.blocks.shape[1] for chunk in scores], all(share >= 1 for share in shares)
    if not everybody or not filtered:
        ranks = ranks.cpu()
    candidates = torch.cat(
        [_top(*each, block) for each in zip(ranks.split(counts, 1), anchors, shares, strict=True)], 1
    )
    value, owner, fixed = ranks.amax(0), _blocks_of_tokens(lengths, counts, block), torch.cat(list(anchors))
    if filtered and bool(candidates.all()):
        value = _of_tokens(value, owner, block)
        picked = _best(value, fixed, budget)
    else:
        value = value.cpu()
        places = _queue(value.split(counts), candidates.any(0), fill, filtered)
        value, picked = value[owner], _taken(places[owner], fixed, budget)
    return Choice(picked, list(anchors), candidates, owner, value)


def _of_tokens(values: Tensor, owner: Tensor, block: int) -> Tensor:
    """Every token's value `(T,)` from those of blocks of `block` tokens."""
    return values if block == 1 else values[sent(owner, values.device)]


def _blocks_of_tokens(lengths: Sequence[int], counts: Sequence[int], block: int) -> Tensor:
    """Every token's block `(T,)` among the blocks of all chunks; `counts` are each chunk's."""
    if block == 1:
        return torch.arange(sum(lengths))
    sizes = torch.cat([block_sizes(length, count, block) for length, count in zip(lengths, counts, strict=True)])
    return repeated(torch.arange(len(sizes)), sizes)


def shortlist(scores: Sequence[ChunkScores], lengths: Sequence[int], limit: int, block: int) -> list[Tensor]:
    """Per chunk the sorted tokens of the best blocks of all chunks: whole blocks, best first, until `limit` tokens."""
    counts = [chunk.blocks.shape[1] for chunk in scores]
    sizes = torch.cat([block_sizes(length, count, block) for length, count in zip(lengths, counts, strict=True)])
    order = normalised(scores, per_chunk=False).amax(0).argsort(descending=True, stable=True)
    before = sizes[order].cumsum(0) - sizes[order]
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    chosen[order[before < limit]] = True
    masks = chosen[_blocks_of_tokens(lengths, counts, block)].split(list(lengths))
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

    Without `fill` the rest has place infinity. Of equals the first comes first.
    """
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


def _best(value: Tensor, anchors: Tensor, budget: int) -> Picked:
    """The anchors, plus the best other tokens by their values `(T,)`, until there are `budget` in all."""
    fixed = int(anchors.sum())
    if not fixed:
        return largest(value, budget)
    there = sent(anchors, value.device)
    more = best_of(Picked(~there, len(anchors) - fixed), value, budget - fixed)
    return Picked(there | more.marks, fixed + more.count)


def _taken(places: Tensor, anchors: Tensor, budget: int) -> Picked:
    """The anchors, plus the tokens with the first `places`, until there are `budget` in all; none without a place."""
    place = places.masked_fill(anchors, float("inf"))
    marks = anchors | (largest(-place, budget - int(anchors.sum())).marks & (place != float("inf")))
    return Picked(marks, int(marks.sum()))


def recompute_order(choice: Choice, share: float, by: str) -> Tensor:
    """The order `(T,)`, where scores are, to recompute chosen tokens in: the best-ranked blocks' first (`by` "score")
    or each kept run's first ones (`by` "head"). If all are, anchors precede the others: nothing replaces them."""
    order = choice.value
    if by == "head":
        order = sent(-torch.cat(list(map(_depth, choice.kept))), order.device)
    anchors = torch.cat(choice.anchors)
    if share == 1 and bool(anchors.any()):
        order = order.masked_fill(sent(anchors, order.device), float("inf"))
    return order


def _depth(kept: Tensor) -> Tensor:
    """How far each kept token is from the start of its run of kept ones, fp32."""
    at, starts = torch.arange(len(kept)), kept.clone()
    starts[1:] &= ~kept[:-1]
    return (at - (at * starts).cummax(0).values).float()


def aligned_rows(choice: Choice, layers: Sequence[int], n_layers: int) -> list[Tensor]:
    """Per model layer a bool over all kept tokens in prompt order: what it stores under layer alignment (SamKV,
    recompute module): the union of what the selection layers at or above it chose, and the anchors."""
    rows, chunks = [], list(zip(choice.per_layer, choice.anchors, choice.kept, strict=True))
    for layer in range(n_layers):
        above = [index for index, chosen in enumerate(layers) if chosen >= layer]
        masks = [(own[above].any(0) | anchors)[kept] for own, anchors, kept in chunks]
        rows.append(torch.cat(masks))
    return rows
