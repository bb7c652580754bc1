"""Selection in two stages against a search by hand: a shortlist from summaries or stored keys, then a second look."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from samkv_rag import ChunkKVStore, SamKV, SamKVError
from samkv_rag.methods import Run
from samkv_rag.methods.scoring import pass_scores
from samkv_rag.methods.selection import ChunkScores, shortlist
from samkv_rag.types import BLOCK, Segment
from tests import oracles
from tests.models import adapter
from tests.oracles import Prompted

LENGTHS = (70, 16, 90, 5, 64)
LAYERS = (1, 2, 3)
SOME = ("llama", "llama-yarn", "mistral-sliding", "gemma2", "gemma4-unlike-heads", "gemma4-sharing", "glm4", "smollm3")
Values = list[list[float]]


@cache
def prompted(wiring: str) -> Prompted:
    store = ChunkKVStore(":memory:")
    return Prompted(oracles.stored_plan(adapter(wiring), store, LENGTHS), adapter(wiring), store)


def run_of(case: Prompted) -> Run:
    return Run(case.plan, case.adapter, case.store, oracles.ROOM)


def best_blocks(values: Values, lengths: tuple[int, ...], limit: int) -> list[tuple[int, int]]:
    """Pairs (chunk, block) by falling value, taken whole until there are `limit` tokens."""
    blocks = sorted((-value, chunk, at) for chunk, part in enumerate(values) for at, value in enumerate(part))
    taken, tokens = [], 0
    for _, chunk, at in blocks:
        if tokens >= limit:
            break
        taken.append((chunk, at))
        tokens += min(BLOCK, lengths[chunk] - at * BLOCK)
    return taken


def standardised_best(shares: list[np.ndarray]) -> Values:
    """For each chunk `(N, B)`, per block the largest of its layers' scores, each layer with mean 0 and deviation 1."""
    together = np.concatenate(shares, 1)
    mean, deviation = together.mean(1, keepdims=True), together.std(1, keepdims=True)
    return [((part - mean) / np.maximum(deviation, 1e-6)).max(0).tolist() for part in shares]


def weighed(attention: np.ndarray) -> np.ndarray:
    return (attention.mean(1) + attention[:, -1]) / 2


def one_layer(case: Prompted, queries: list[Tensor], positions: Tensor, chunk: Segment, layer: int) -> np.ndarray:
    """`(1, H, Q, B)`: the largest possible product of each asking token with a key of each block."""
    index, stack = next(found for found in enumerate(case.adapter.shape.stacks) if layer in found[1].readers)
    known, row = case.store.summary(str(chunk.key)).stacks[index], stack.readers.index(layer)
    place = stack.layers.index(case.adapter.shape.sources[layer])
    turned = case.adapter.table(positions - chunk.start).rotate(queries[index][row : row + 1], [layer])[0]
    low, high = (x[place].repeat_interleave(stack.heads // stack.kv_heads, 1).double() for x in (known.low, known.high))
    part = np.zeros((1, turned.shape[0], turned.shape[1], known.n_blocks))
    for (_, head, asked, at), _ in np.ndenumerate(part):
        q = turned[head, asked].double()
        ends = (q * low[at, head]).numpy(), (q * high[at, head]).numpy()
        part[0, head, asked, at] = np.maximum(*ends).sum() / np.sqrt(len(q))
    return part


def sizes(chunk: Segment) -> list[int]:
    """Tokens of each block, every one of which the bound stands for."""
    return [min(BLOCK, len(chunk.token_ids) - start) for start in range(0, len(chunk.token_ids), BLOCK)]


def bound_shares(case: Prompted) -> list[np.ndarray]:
    """Attention of every asking token to the bound of each block's keys, one number at a time."""
    nothing = [torch.arange(0) for _ in LENGTHS]
    queries, positions = run_of(case).asking_pass(nothing, LAYERS[-1])
    assert positions.tolist() == list(range(case.plan.question.start, case.plan.n_tokens))
    logits = [
        np.concatenate([one_layer(case, queries, positions, chunk, layer) for layer in LAYERS]) + np.log(sizes(chunk))
        for chunk in case.plan.chunks
    ]
    together = np.exp(np.concatenate(logits, -1) - np.concatenate(logits, -1).max(-1, keepdims=True))
    shares = weighed((together / together.sum(-1, keepdims=True)).mean(1))
    return np.split(shares, np.cumsum([x.shape[-1] for x in logits])[:-1], axis=-1)


def key_shares(case: Prompted, blocks: list[tuple[int, int]]) -> list[np.ndarray]:
    """Attention summed over each block, in a pass that attends to the tokens of `blocks` alone."""
    seen = [
        torch.tensor([t for t in range(n) if (chunk, t // BLOCK) in blocks], dtype=torch.long)
        for chunk, n in enumerate(LENGTHS)
    ]
    maps, columns = run_of(case).question_attention(seen, LAYERS)
    out = []
    for n, tokens, column in zip(LENGTHS, seen, columns, strict=True):
        part = np.zeros((len(LAYERS), -(-n // BLOCK)))
        for token, at in zip(tokens.tolist(), column.tolist(), strict=True):
            part[:, token // BLOCK] += weighed(maps[:, :, at : at + 1].double().numpy())[:, 0]
        out.append(part)
    return out


@pytest.mark.parametrize("wiring", SOME)
def test_the_selection_is_the_one_found_by_hand(wiring: str) -> None:
    case, keep, candidates = prompted(wiring), 0.2, 2.0
    budget = int(keep * sum(LENGTHS))
    listed = best_blocks(standardised_best(bound_shares(case)), LENGTHS, int(candidates * budget))
    decided = best_blocks(standardised_best(key_shares(case, listed)), LENGTHS, budget)
    want = [{t for t in range(n) if (chunk, t // BLOCK) in decided} for chunk, n in enumerate(LENGTHS)]
    method = SamKV(settle="before", keep=keep, look="two_stage", candidates=candidates, layers=LAYERS)
    got = [set(tokens.tolist()) for tokens in case.prepare(method).selection.kept]
    last, at = decided[-1]  # cut to fit the budget
    assert sum(map(len, got)) == budget
    assert all(a <= b for a, b in zip(got, want, strict=True))
    assert {(c, t) for c, ts in enumerate(want) for t in ts - got[c]} <= {
        (last, t) for t in range(at * BLOCK, (at + 1) * BLOCK)
    }


@pytest.mark.parametrize("wiring", SOME)
def test_with_everything_on_the_shortlist_the_scores_are_those_of_all_keys(wiring: str) -> None:
    case = prompted(wiring)
    everything = [torch.arange(length) for length in LENGTHS]
    whole = pass_scores(run_of(case), LAYERS, BLOCK, 8, 8)
    listed = pass_scores(run_of(case), LAYERS, BLOCK, 8, 8, everything)
    assert all(torch.equal(a.blocks, b.blocks) for a, b in zip(whole, listed, strict=True))
    for keep, candidates in ((0.2, 5.0), (0.5, 2.0)):
        keys = case.prepare(SamKV(settle="before", keep=keep, look="keys", layers=LAYERS)).selection.kept
        staged = SamKV(settle="before", keep=keep, look="two_stage", candidates=candidates, layers=LAYERS)
        assert all(torch.equal(a, b) for a, b in zip(keys, case.prepare(staged).selection.kept, strict=True))


def test_a_shortlist_of_less_can_choose_otherwise() -> None:
    """The control of the test above."""
    case = prompted("llama")
    kept = [
        [tokens.tolist() for tokens in case.prepare(method).selection.kept]
        for method in (
            SamKV(settle="before", keep=0.2, look="keys", layers=LAYERS),
            SamKV(settle="before", keep=0.2, look="two_stage", candidates=1.0, layers=LAYERS),
        )
    ]
    assert kept[0] != kept[1]


def blocks_read(kept: tuple[Tensor, ...]) -> set[tuple[int, int]]:
    return {(chunk, token // BLOCK) for chunk, tokens in enumerate(kept) for token in tokens.tolist()}


@pytest.mark.parametrize("candidates", [1.0, 2.0, 3.0])
def test_what_is_not_on_the_shortlist_is_not_read(candidates: float) -> None:
    case, run = prompted("llama"), run_of(prompted("llama"))
    listed: list[tuple[Tensor, ...]] = []
    original = run.question_attention

    def spy(kept: tuple[Tensor, ...], layers: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        listed.append(kept)
        return original(kept, layers)

    run.question_attention = spy  # type: ignore[method-assign]
    method = SamKV(settle="before", keep=0.2, look="two_stage", candidates=candidates, layers=(3,))
    selection = method.prepare(run).selection
    limit = int(candidates * int(0.2 * sum(LENGTHS)))
    assert limit <= sum(map(len, listed[0])) < limit + BLOCK
    assert blocks_read(selection.kept) <= blocks_read(listed[0])
    per_block = BLOCK * case.adapter.shape.bytes_per_token
    assert run.entries.bytes_read == per_block * len(blocks_read(listed[0]))


def test_all_keys_read_everything() -> None:
    """The control of the test above."""
    run = run_of(prompted("llama"))
    SamKV(settle="before", keep=0.2, look="keys", layers=(3,)).prepare(run)
    assert run.entries.bytes_read == BLOCK * adapter("llama").shape.bytes_per_token * sum(
        -(-n // BLOCK) for n in LENGTHS
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 200), st.integers(1, 3), st.integers(0, 99))
def test_the_shortlist_is_the_best_blocks_taken_whole(lengths: list[int], limit: int, layers: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.rand(layers, -(-n // BLOCK), generator=generator) for n in lengths]
    got = shortlist([ChunkScores(p, torch.zeros(p.shape[1], dtype=torch.bool)) for p in parts], lengths, limit, BLOCK)
    values = standardised_best([part.double().numpy() for part in parts])
    assume(np.diff(np.sort(np.concatenate(values))).min(initial=1) > 1e-4)  # two blocks alone may tie
    want = best_blocks(values, tuple(lengths), limit)
    assert blocks_read(tuple(got)) == set(want)
    assert sum(map(len, got)) == sum(min(BLOCK, lengths[chunk] - at * BLOCK) for chunk, at in want)


def test_a_shortlist_shorter_than_the_budget_is_refused() -> None:
    with pytest.raises(SamKVError, match="1 or more"):
        SamKV(look="two_stage", candidates=0.5)
    with pytest.raises(SamKVError, match="multiple of 16"):
        SamKV(look="two_stage", block=5)
