"""How much each block of each chunk matters to the question (SamKV, personalised query embedding and block scores)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from samkv_kernels.block_scores import block_logits, block_scores, bound_logits
from samkv_kernels.repeating import repeated
from samkv_kernels.sending import few, sent
from samkv_rag.errors import SamKVError
from samkv_rag.methods.run import Run
from samkv_rag.methods.selection import ChunkScores, block_sizes, standardised
from samkv_rag.types import BLOCK

GAIN = 4.0
"""How much attention at second hand counts, relative to attention at first hand."""


def check_block(block: int) -> None:
    """Raise `SamKVError` unless a selection block covers a whole number of the summaries that are scored."""
    if block % BLOCK:
        raise SamKVError(f"block must be a multiple of {BLOCK} tokens, the unit of the summaries that are scored.")


def personalised(generic: Tensor, local: Tensor, partner: str = "query") -> Tensor:
    """`q_i = q_gen + 1/(C-1) * sum_{j != i} |cos(q_loc_j, partner)| q_loc_j`, all position-free.

    `generic` `(L, H, D)` is the pooled question query, `local` `(C, L, H, D)` the chunks' local queries; the partner is
    the generic query ("query") or chunk i's own local query ("local"). Returns `(C, L, H, D)`; one chunk has no bias.
    """
    chunks = len(local)
    if chunks == 1:
        return generic[None]
    if partner == "query":
        weighted = torch.cosine_similarity(local, generic[None], dim=-1).abs()[..., None] * local
        return generic + (weighted.sum(0) - weighted) / (chunks - 1)
    unit = torch.nn.functional.normalize(local, dim=-1)
    weights = torch.einsum("ilhd,jlhd->ijlh", unit, unit).abs()
    weights.diagonal().zero_()
    return generic + torch.einsum("ijlh,jlhd->ilhd", weights, local) / (chunks - 1)


def turned_to_chunks(run: Run, queries: Sequence[Tensor], frame: str = "true") -> list[Tensor]:
    """Every stack's queries `(C, L, H, D)` rotated into each chunk's own frame, that of its block means.

    The question is at its true distance from the chunk's first token, or ("adjacent") right after the chunk.
    """
    start = run.plan.question.start
    places = [start - chunk.start if frame == "true" else len(chunk.token_ids) for chunk in run.plan.chunks]
    table, stacks = run.adapter.table(torch.tensor(places)), run.adapter.shape.stacks
    columns = [own.permute(1, 2, 0, 3) for own in queries]
    turned = (table.rotate(own, stack.readers[: len(own)]) for own, stack in zip(columns, stacks, strict=False))
    return [own.permute(2, 0, 1, 3) for own in turned]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Layers that attend to one stack: its number, their rows among its readers, the places of the keys they read."""

    stack: int
    rows: list[int]
    places: list[int]

    def of(self, queries: Sequence[Tensor], dim: int) -> Tensor:
        """Their queries out of every stack's `queries`, whose layers lie along `dim`."""
        own = queries[self.stack]
        return own.index_select(dim, few(torch.tensor(self.rows), own.device))


def _by_stack(run: Run, layers: Sequence[int], score: Callable[[_Chosen], Tensor]) -> Tensor:
    """What `score` finds for the layers of each stack `(n, ...)`, joined to `(N, ...)` for all `layers`."""
    parts, order, sources = list[Tensor](), list[int](), run.adapter.shape.sources
    for index, stack in enumerate(run.adapter.shape.stacks):
        own = [layer for layer in layers if layer in stack.readers]
        if own:
            places = [stack.layers.index(sources[layer]) for layer in own]
            parts.append(score(_Chosen(index, [stack.readers.index(layer) for layer in own], places)))
            order += own
    joined = torch.cat(parts)
    return joined if order == list(layers) else joined[[order.index(layer) for layer in layers]]


def chunk_scores(
    run: Run, queries: Sequence[Tensor], layers: tuple[int, ...], block: int, initial: int, local: int
) -> list[ChunkScores]:
    """Scores of every chunk's selection blocks on `layers`; `queries`, `(C, L, H, D)` for each stack, are in the
    chunks' frames."""
    counts = run.caches.blocks

    def score(chosen: _Chosen) -> Tensor:
        own = chosen.of(queries, 1)
        return block_scores(own, _joined(run, "mean", chosen, own.device), counts, run.adapter.backend).cpu()

    fine = _by_stack(run, layers, score)
    parts = [
        _merged(part, length, block // BLOCK) for part, length in zip(fine.split(counts, 1), run.lengths, strict=True)
    ]
    return _marked(run, parts, block, initial, local)


def _merged(fine: Tensor, length: int, per: int) -> Tensor:
    """Scores of selection blocks of `per` storage blocks from the latter's `(N, B)`: means weighted by tokens."""
    sizes = block_sizes(length, fine.shape[1], BLOCK).float()
    group = torch.arange(fine.shape[1]) // per
    total = torch.zeros(int(group[-1]) + 1).index_add(0, group, sizes)
    return torch.zeros(len(fine), len(total)).index_add(1, group, fine * sizes) / total


def _touched(length: int, blocks: int, block: int, initial: int, local: int) -> Tensor:
    """Bool `(B,)`: the blocks that hold anchor tokens."""
    tokens = torch.zeros(blocks * block, dtype=torch.bool)
    if not initial + local:
        return tokens[:blocks]
    tokens[:initial] = True
    tokens[max(0, length - local) : length] = True
    return tokens.view(blocks, block).any(1)


def attention_scores(
    run: Run, queries: Sequence[Tensor], positions: Tensor, layers: tuple[int, ...], block: int, initial: int,
    local: int, *,
    frame: str = "true", summary: str = "mean",
) -> list[ChunkScores]:  # fmt: skip
    """Share of the asking tokens' attention that falls on each selection block, all chunks' blocks in one softmax.

    `queries`, `(L, H, Q, D)` for each stack, are those of the tokens at `positions` `(Q,)`, position-free. A block is
    represented by its mean key ("mean") or by the upper bound that its minimum and maximum give (Quest; "bound"), which
    counts once for each of its tokens. Scores are scaled by `1 / sqrt(D)` and neither capped nor windowed, as a model's
    own may be.
    """
    blocks = zip(run.lengths, run.caches.blocks, strict=True)
    counted = torch.cat([block_sizes(length, count, BLOCK) for length, count in blocks]).log()

    def score(chosen: _Chosen) -> Tensor:
        turned = _tokens_turned(run, chosen, chosen.of(queries, 0), positions, frame)
        logits = _logits(run, turned, chosen, summary) + sent(counted, turned.device)
        return weighed(logits.softmax(-1).mean(1)).cpu()

    shares = _by_stack(run, layers, score)
    parts = [_summed(part, block // BLOCK) for part in shares.split(run.caches.blocks, -1)]
    return _marked(run, parts, block, initial, local)


def _logits(run: Run, queries: Tensor, chosen: _Chosen, summary: str) -> Tensor:
    """Logits, fp32 `(L, H, Q, B)`, of the `chosen` layers' `queries` `(C, L, H, Q, D)`."""
    counts, backend, device = run.caches.blocks, run.adapter.backend, queries.device
    if summary == "mean":
        return block_logits(queries, _joined(run, "mean", chosen, device), counts, backend)
    low, high = (_joined(run, name, chosen, device) for name in ("low", "high"))
    return bound_logits(queries, low, high, counts, backend)


def surrounded(values: Tensor, before: int, behind: int, lengths: Sequence[int] | None = None) -> Tensor:
    """Every token's largest value within reach `(T,)`: a token is raised by one that it precedes by up to `before`
    tokens or follows by up to `behind`, so that what surrounds a token attended to is kept with it (SnapKV pools
    likewise). Reach ends with a chunk of `lengths`; by default all tokens are of one."""
    sizes = torch.tensor(lengths or [len(values)])
    before, behind = (min(far, int(sizes.max())) for far in (before, behind))
    reach = before + behind
    start = torch.arange(len(values)) + reach * repeated(torch.arange(len(sizes)), sizes)
    start = sent(start, values.device)
    padded = values.new_full((len(values) + reach * len(sizes),), float("-inf")).index_copy_(0, start + behind, values)
    return padded.unfold(0, reach + 1, 1).amax(1)[start]


def vicinities(values: Tensor, lengths: Sequence[int], window: int = 9, reach: int = 64) -> Tensor:
    """The best place near every token `(T,)`: the largest mean of `window` neighbours (an odd number) within `reach`
    tokens, in its own chunk. One token that is attended to by chance does not make a place good."""
    means = [avg_pool1d(own[None], window, 1, window // 2, count_include_pad=False)[0] for own in values.split(lengths)]
    return surrounded(torch.cat(means), reach, reach, lengths)


def worth_keeping(looked_at: Tensor, around: tuple[int, int], vicinity: float, lengths: Sequence[int]) -> Tensor:
    """How much each token of chunks of `lengths` is worth keeping, by the attention it received (`looked_at`), both
    `(T,)`: as much as any token `around` it, plus `vicinity` times its neighbourhood."""
    near = surrounded(looked_at, *around, lengths)
    if not vicinity:
        return near
    both = standardised(torch.stack([near, vicinities(looked_at, lengths)]))
    return both[0] + vicinity * both[1]


def followed_values(direct: Tensor, witnesses: Tensor, witnessed: Tensor, gain: float = GAIN) -> Tensor:
    """Values `(T,)` of the tokens that are attended to, and of what these attend to in turn.

    `direct` `(T,)` is any score that grows with the question's attention; `witnessed` `(W, T)` the attention of the
    tokens `witnesses` `(W,)`, averaged over heads, few of which follow one thing: it counts `gain` times (our choice).
    """
    direct = direct - direct.min()
    through = (direct[witnesses][:, None] * witnessed).scatter_(1, witnesses[:, None], 0)
    return torch.maximum(direct, gain * through.amax(0))


def weighed(attention: Tensor) -> Tensor:
    """Attention `(N, Q, T)` -> `(N, T)`: half the weight is the asking tokens together, half the last one, the token
    before the answer, which looks for it."""
    return (attention.mean(1) + attention[:, -1]) / 2


def pass_scores(
    run: Run, layers: tuple[int, ...], block: int, initial: int, local: int, seen: Sequence[Tensor] | None = None
) -> list[ChunkScores]:
    """Share of attention that falls on each selection block in a pass of the question over the stored entries.

    Reads the tokens `seen` of every chunk (sorted indices), by default all of them: scores are then on the model's
    device. What is not read scores 0. Any block size.
    """
    maps, columns = run.question_attention(run.caches.everything if seen is None else seen, layers)
    shares = weighed(maps)
    if seen is not None:
        return _placed(run, shares.cpu(), seen, columns, block, initial, local)
    return _marked(run, [_summed(part, block) for part in shares.split(run.lengths, 1)], block, initial, local)


def _placed(
    run: Run, shares: Tensor, seen: Sequence[Tensor], columns: Sequence[Tensor], block: int, initial: int, local: int
) -> list[ChunkScores]:
    """Scores of every chunk's blocks: the sums of the shares `(N, T)` of the tokens `seen`."""
    parts = []
    for length, tokens, column in zip(run.lengths, seen, columns, strict=True):
        whole = torch.zeros(len(shares), length)
        whole[:, tokens] = shares[:, column]
        parts.append(_summed(whole, block))
    return _marked(run, parts, block, initial, local)


def _marked(run: Run, parts: list[Tensor], block: int, initial: int, local: int) -> list[ChunkScores]:
    return [
        ChunkScores(part, _touched(length, part.shape[1], block, initial, local))
        for part, length in zip(parts, run.lengths, strict=True)
    ]


def _tokens_turned(run: Run, chosen: _Chosen, queries: Tensor, positions: Tensor, frame: str) -> Tensor:
    """`(L, H, Q, D)` position-free -> `(C, L, H, Q, D)`, each asking token in each chunk's own frame."""
    behind = positions - run.plan.question.start
    start = run.plan.question.start
    places = [start - c.start if frame == "true" else len(c.token_ids) for c in run.plan.chunks]
    table = run.adapter.table((torch.tensor(places)[:, None] + behind).flatten())
    readers = run.adapter.shape.stacks[chosen.stack].readers
    layers = [readers[row] for row in chosen.rows]
    turned = table.rotate(queries.repeat(1, 1, len(places), 1), layers)
    return turned.reshape(*turned.shape[:2], len(places), len(positions), -1).permute(2, 0, 1, 3, 4)


def _joined(run: Run, name: str, chosen: _Chosen, device: torch.device) -> Tensor:
    """One kind of summary (mean, low, high) of all chunks' blocks, one after another, of the keys that the `chosen`
    layers attend to: `(N, B, G, D)`."""
    stacks = [run.summaries(index).stacks[chosen.stack] for index in range(len(run.lengths))]
    parts = [
        getattr(stack, name)[chosen.places, :count] for stack, count in zip(stacks, run.caches.blocks, strict=True)
    ]
    return torch.cat(parts, 1).to(device)


def _summed(fine: Tensor, per: int) -> Tensor:
    if per == 1:
        return fine
    padded = torch.nn.functional.pad(fine, (0, -fine.shape[1] % per))
    return padded.reshape(len(padded), -1, per).sum(-1)
