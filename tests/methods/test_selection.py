"""Which tokens are kept: properties of the budget, the anchors and the scores, whatever the chunks look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_rag import SamKV, SamKVError
from samkv_rag.methods.picked import Picked, best_of, best_tokens
from samkv_rag.methods.scoring import personalised
from samkv_rag.methods.selection import (
    Choice,
    ChunkScores,
    aligned_rows,
    anchor_masks,
    choose,
    dynamic_share,
    early_first,
    recompute_order,
)

LENGTHS = st.lists(st.integers(1, 120), min_size=1, max_size=8)
settings.register_profile("selection", max_examples=60, deadline=None)
settings.load_profile("selection")


@dataclass(frozen=True)
class Case:
    """Random chunks and everything `choose` needs."""

    lengths: list[int]
    anchors: list[Tensor]
    scores: list[ChunkScores]
    budget: int
    block: int
    n_layers: int

    def choose(self, fill: bool = True, filtered: bool = True, per_chunk: bool = False, share: float = 1.0) -> Choice:
        shares = [share] * len(self.lengths)
        return choose(
            self.scores, self.anchors, self.budget, self.block,
            shares=shares, per_chunk=per_chunk, fill=fill, filtered=filtered,
        )  # fmt: skip


def make_case(
    lengths: list[int], keep: float, block: int = 16, initial: int = 8, local: int = 8, n_layers: int = 2, seed: int = 0
) -> Case:
    budget = int(keep * sum(lengths))
    anchors = anchor_masks(lengths, initial, local, budget // 2)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for mask in anchors:
        touched = torch.stack([part.any() for part in mask.split(block)])
        scores.append(ChunkScores(torch.randn(n_layers, len(touched), generator=generator), touched))
    return Case(lengths, anchors, scores, budget, block, n_layers)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return make_case(
        draw(LENGTHS), draw(st.floats(0, 1)), draw(st.sampled_from([16, 32, 48])), draw(st.integers(0, 20)),
        draw(st.integers(0, 20)), draw(st.integers(1, 3)), draw(st.integers(0, 99)),
    )  # fmt: skip


def total(masks: list[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


# -- anchors -------------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(0, 20), st.integers(0, 20), st.integers(0, 400))
def test_anchors_never_exceed_their_limit_and_use_it_up(
    lengths: list[int], initial: int, local: int, limit: int
) -> None:
    masks = anchor_masks(lengths, initial, local, limit)
    wanted = [min(length, initial + local) for length in lengths]
    assert total(masks) == min(limit, sum(wanted))
    for mask, most in zip(masks, wanted, strict=True):
        assert int(mask.sum()) <= most


@given(LENGTHS, st.integers(0, 20), st.integers(0, 20), st.integers(0, 400))
def test_anchors_stand_at_the_two_ends(lengths: list[int], initial: int, local: int, limit: int) -> None:
    for length, mask in zip(lengths, anchor_masks(lengths, initial, local, limit), strict=True):
        head = int(mask.long().cumprod(0).sum())
        tail = int(mask.flip(0).long().cumprod(0).sum())
        if not mask.all():
            assert head + tail == int(mask.sum())
            assert head <= initial and tail <= local
        else:
            assert length <= initial + local


def test_trimming_is_even_and_favours_the_first_of_the_order_when_there_is_less_than_one_each() -> None:
    assert [int(m.sum()) for m in anchor_masks([50, 50, 3], 8, 8, 19)] == [8, 8, 3]
    assert [int(m.sum()) for m in anchor_masks([50, 50, 50], 8, 8, 2, order=[2, 0, 1])] == [1, 0, 1]


# -- the budget ----------------------------------------------------------------------------------------------------


@given(cases(), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1))
def test_the_budget_is_a_hard_ceiling_on_the_union_anchors_included(
    case: Case, fill: bool, filtered: bool, per_chunk: bool, share: float
) -> None:
    choice = case.choose(fill, filtered, per_chunk, share)
    assert total(choice.kept) == choice.picked.count <= case.budget
    for kept, anchors, own in zip(choice.kept, choice.anchors, choice.per_layer, strict=True):
        assert bool((kept | ~anchors).all()), "anchors are kept"
        assert bool((kept | ~own.any(0)).all()), "what a layer chose itself is kept or nothing"


@given(cases(), st.booleans())
def test_filling_reaches_the_budget_exactly(case: Case, filtered: bool) -> None:
    assert total(case.choose(fill=True, filtered=filtered).kept) == case.budget


@given(cases())
def test_without_filling_only_candidates_and_anchors_are_kept(case: Case) -> None:
    choice = case.choose(fill=False, share=0.0)
    assert all(torch.equal(kept, anchors) for kept, anchors in zip(choice.kept, choice.anchors, strict=True))


@given(LENGTHS, st.sampled_from([16, 32, 48]), st.booleans())
def test_a_budget_for_everything_keeps_everything(lengths: list[int], block: int, fill: bool) -> None:
    choice = make_case(lengths, 1.0, block).choose(fill=fill)
    assert total(choice.kept) == sum(lengths)


@given(LENGTHS)
def test_keeping_nothing_keeps_nothing(lengths: list[int]) -> None:
    assert total(make_case(lengths, 0.0).choose().kept) == 0


@pytest.mark.parametrize("keep", [0.01, 0.15, 0.5])
def test_two_hundred_chunks_fit_their_budget(keep: float) -> None:
    case = make_case([1 + 7 * index % 90 for index in range(200)], keep)
    assert total(case.choose().kept) == case.budget


def test_what_is_not_a_number_leaves_no_budget_unused() -> None:
    """A model whose keys overflow in half precision still has its budget: too few tokens would hide why it is wrong."""
    nan, none = float("nan"), torch.zeros(4, dtype=torch.bool)
    for row, best in (([nan, nan, nan, nan], [0, 1, 2]), ([1.0, nan, 3.0, 2.0], [1, 2, 3])):
        scores = [ChunkScores(torch.tensor([row]), none)]
        for block in (1, 2):
            anchors = [torch.zeros(4 * block, dtype=torch.bool)]
            choice = choose(scores, anchors, 3, block, shares=[1.0], per_chunk=False, fill=True)
            assert int(choice.kept[0].sum()) == 3
            assert int(best_of(choice.picked, recompute_order(choice, 0.7, "score"), 2).marks.sum()) == 2
        assert best_tokens([torch.tensor(row)], 3)[0].tolist() == best


def test_a_budget_below_one_token_a_chunk_is_still_a_ceiling() -> None:
    case = make_case([40] * 10, 0.02)
    assert case.budget == 8
    assert total(case.choose().kept) == 8


def test_one_token_chunks_are_kept_whole_or_not_at_all() -> None:
    case = make_case([1] * 9, 0.5)
    assert total(case.choose().kept) == 4


def test_the_best_block_of_all_chunks_comes_first_and_the_last_one_is_cut_to_fit() -> None:
    scores = [ChunkScores(torch.tensor([[0.0, 1.0, 0.0]]), torch.zeros(3, dtype=torch.bool)) for _ in range(2)]
    scores[1].blocks[0, 2] = 9.0
    none = [torch.zeros(48, dtype=torch.bool)] * 2
    choice = choose(scores, none, 20, 16, shares=[1.0, 1.0], per_chunk=False, fill=True)
    assert choice.kept[1].nonzero()[:, 0].tolist()[-16:] == list(range(32, 48))
    assert total(choice.kept) == 20
    assert choice.kept[0].nonzero()[:, 0].tolist() == [16, 17, 18, 19]


# -- shares, recompute, alignment ----------------------------------------------------------------------------------


@given(cases())
def test_a_dynamic_share_is_a_share(case: Case) -> None:
    assert all(0 <= dynamic_share(chunk) <= 1 for chunk in case.scores)


def test_the_dynamic_share_is_equation_two_averaged_over_layers() -> None:
    anchor = torch.tensor([True, False, False, True])
    blocks = torch.tensor([[1.0, 4.0, 0.0, 3.0], [9.0, 4.0, 0.0, 9.0], [5.0, 2.0, 2.0, 5.0]])
    # (4 - 2) / (4 - 0); anchors above all middle blocks: 0; all middle blocks alike: 1
    assert dynamic_share(ChunkScores(blocks, anchor)) == pytest.approx((0.5 + 0 + 1) / 3)
    assert dynamic_share(ChunkScores(blocks, torch.ones(4, dtype=torch.bool))) == 1.0


@given(cases(), st.floats(0, 1), st.sampled_from(["score", "head"]))
def test_what_is_recomputed_is_a_share_of_what_is_kept(case: Case, share: float, by: str) -> None:
    choice = case.choose()
    picked = best_of(choice.picked, recompute_order(choice, share, by), int(share * choice.picked.count))
    again = picked.by_chunk(case.lengths)
    assert sum(map(len, again)) == picked.count == int(share * total(choice.kept))
    for kept, tokens in zip(choice.kept, again, strict=True):
        assert set(tokens.tolist()) <= set(kept.nonzero()[:, 0].tolist())
        assert tokens.tolist() == sorted(tokens.tolist())


def test_recompute_by_head_takes_the_first_tokens_of_every_run() -> None:
    kept = torch.zeros(40, dtype=torch.bool)
    kept[5:15], kept[20:30] = True, True
    none = [kept & False]
    choice = Choice(Picked(kept, 20), none, torch.ones(1, 40).bool(), torch.arange(40), torch.zeros(40))
    order = recompute_order(choice, 0.4, "head")
    assert best_of(choice.picked, order, 8).at.tolist() == [5, 6, 7, 8, 20, 21, 22, 23]


@given(cases())
def test_alignment_stores_more_the_lower_the_layer_and_all_choices_at_the_bottom(case: Case) -> None:
    choice = case.choose(fill=False, share=0.5)
    layers = tuple(range(1, 2 * case.n_layers, 2))
    rows = aligned_rows(choice, layers, 2 * case.n_layers + 1)
    anchors = torch.cat([a[k] for a, k in zip(choice.anchors, choice.kept, strict=True)])
    for lower, upper in zip(rows, rows[1:], strict=False):
        assert bool((lower | ~upper).all())
    assert torch.equal(rows[-1], anchors), "above the last selection layer only anchors are stored"
    union = [own.any(0)[kept] for own, kept in zip(choice.per_layer, choice.kept, strict=True)]
    assert torch.equal(rows[0], torch.cat(union) | anchors)


@pytest.mark.parametrize(("block", "lengths"), [(1, [3, 2]), (16, [40, 20])])
def test_what_stands_early_in_its_chunk_is_divided_by_least(block: int, lengths: list[int]) -> None:
    """By the place of a block's first token, counted from 1, to the power `early`; alike on every layer and chunk."""
    counts = [-(-length // block) for length in lengths]
    scores = [ChunkScores(torch.rand(2, count), torch.zeros(count, dtype=torch.bool)) for count in counts]
    for early in (0.0, 0.5, 1.0):
        for new, old, count in zip(early_first(scores, block, early), scores, counts, strict=True):
            places = torch.tensor([1 + block * index for index in range(count)])
            assert torch.allclose(new.blocks, old.blocks / places**early)
            assert torch.equal(new.anchor, old.anchor)


# -- queries and scores --------------------------------------------------------------------------------------------


def test_one_chunk_has_no_bias() -> None:
    generic = torch.randn(2, 4, 8)
    for partner in ("query", "local"):
        assert torch.equal(personalised(generic, torch.randn(1, 2, 4, 8), partner)[0], generic)


@pytest.mark.parametrize("partner", ["query", "local"])
def test_the_bias_is_the_mean_of_the_other_chunks_weighted_by_their_cosine(partner: str) -> None:
    torch.manual_seed(0)
    generic, local = torch.randn(2, 4, 8), torch.randn(3, 2, 4, 8)
    got = personalised(generic, local, partner)
    for i in range(3):
        for layer in range(2):
            for head in range(4):
                want = generic[layer, head].double().numpy().copy()
                with_whom = generic if partner == "query" else local[i]
                for j in {0, 1, 2} - {i}:
                    a, b = local[j, layer, head].double().numpy(), with_whom[layer, head].double().numpy()
                    want += abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) * a / 2
                assert np.allclose(got[i, layer, head].numpy(), want, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"keep": 1.2}, {"keep": -0.1}, {"recompute": 2}, {"block": 0}, {"look": "pooled", "block": 8},
     {"look": "mean", "block": 20}],
)  # fmt: skip
def test_shares_and_blocks_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SamKVError, match=r"\.$|,"):
        SamKV(**options)


def test_layers_the_model_does_not_have_are_refused() -> None:
    assert SamKV(layers=(-1, 0)).selection_layers(4) == (0, 3)
    assert SamKV().selection_layers(6) == (2, 3)
    assert SamKV().selection_layers(6, measured=(1,)) == (1,)
    assert SamKV(layers=(5,)).selection_layers(6, measured=(1,)) == (5,)
    with pytest.raises(SamKVError, match="0 to 3"):
        SamKV(layers=(4,)).selection_layers(4)
