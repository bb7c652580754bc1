"""How much each block of each chunk matters to the question (SamKV, personalised query embedding and block scores)."""

from __future__ import annotations

import torch
from torch import Tensor

from samkv_kernels.block_scores import block_scores
from samkv_rag.methods.run import Run
from samkv_rag.methods.selection import ChunkScores
from samkv_rag.types import BLOCK


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
    weights[range(chunks), range(chunks)] = 0
    return generic + torch.einsum("ijlh,jlhd->ilhd", weights, local) / (chunks - 1)


def turned_to_chunks(run: Run, queries: Tensor, frame: str = "true") -> Tensor:
    """Queries `(C, L, H, D)` turned into each chunk's own frame, where its block means stand.

    The question stands at its true distance from the chunk's first token, or ("adjacent") right behind the chunk.
    """
    start = run.plan.question.start
    places = [start - chunk.start if frame == "true" else len(chunk.token_ids) for chunk in run.plan.chunks]
    table = run.adapter.table(torch.tensor(places))
    return table.rotate(queries.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)


def chunk_scores(
    run: Run, queries: Tensor, layers: tuple[int, ...], block: int, initial: int, local: int
) -> list[ChunkScores]:
    """Scores of every chunk's selection blocks on `layers`; `queries` `(C, L, H, D)` stand in the chunks' frames."""
    chosen = torch.tensor(layers, device=queries.device)
    scores = []
    for index, length in enumerate(run.lengths):
        mean = run.summaries(index).mean[:, : -(-length // BLOCK)].to(queries.device)
        fine = block_scores(queries[index, chosen], mean[chosen]).cpu()
        merged = _merged(fine, length, block // BLOCK)
        scores.append(ChunkScores(merged, _touched(length, merged.shape[1], block, initial, local)))
    return scores


def _merged(fine: Tensor, length: int, per: int) -> Tensor:
    """Scores of selection blocks of `per` storage blocks from the latter's `(N, B)`: means weighted by tokens."""
    sizes = torch.full((fine.shape[1],), float(BLOCK))
    sizes[-1] = length - BLOCK * (fine.shape[1] - 1)
    group = torch.arange(fine.shape[1]) // per
    total = torch.zeros(int(group[-1]) + 1).index_add(0, group, sizes)
    return torch.zeros(len(fine), len(total)).index_add(1, group, fine * sizes) / total


def _touched(length: int, blocks: int, block: int, initial: int, local: int) -> Tensor:
    """Bool `(B,)`: the blocks that hold anchor tokens."""
    tokens = torch.zeros(blocks * block, dtype=torch.bool)
    tokens[:initial] = True
    tokens[max(0, length - local) : length] = True
    return tokens.view(blocks, block).any(1)
