"""The cheap look from which sets of layers are guessed: what it would keep, and how far a stock model agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from samkv_rag import SamKV, SamKVEngine
from samkv_rag.methods import Run
from samkv_rag.profiling.measure import Looked, look
from samkv_rag.types import BLOCK
from tests.models import tiny_engine
from tests.oracles import stock
from tests.profiling.questions import planned

ANSWER = (84, 113, 109, 113)


@pytest.fixture(scope="module")
def engine() -> SamKVEngine:
    return tiny_engine()


@pytest.fixture(scope="module")
def looked(engine: SamKVEngine) -> Looked:
    return look(engine, planned(engine), ANSWER, keep=0.3)


@pytest.mark.parametrize("layers", [(0,), (1, 3), (0, 1, 2, 3)])
def test_what_a_layer_would_keep_is_what_samkv_keeps_with_it(
    engine: SamKVEngine, looked: Looked, layers: tuple[int, ...]
) -> None:
    method = SamKV(settle="before", keep=0.3, look="keys", layers=layers)
    selection = method.prepare(Run(planned(engine), engine.adapter, engine.store, 1)).selection
    assert [mask.nonzero()[:, 0].tolist() for mask in looked.kept(layers)] == [t.tolist() for t in selection.kept]


def test_the_reference_is_the_attention_of_a_stock_model_that_writes_the_answer(
    engine: SamKVEngine, looked: Looked
) -> None:
    plan = planned(engine)
    with torch.no_grad():
        maps = stock("llama")(torch.tensor([[*plan.token_ids, *ANSWER]]), output_attentions=True).attentions
    rows = slice(plan.n_tokens - 1, plan.n_tokens + len(ANSWER) - 1)
    whole = torch.stack(maps)[:, 0, :, rows].mean((0, 1, 2))
    for chunk, own in zip(plan.chunks, looked.reference, strict=True):
        assert torch.allclose(own, whole[chunk.start : chunk.stop], atol=1e-5)


def test_agreement_is_1_for_the_best_blocks_and_less_for_others(looked: Looked) -> None:
    sums = [torch.stack([part.sum() for part in own.split(BLOCK)]) for own in looked.reference]
    perfect = [replace(c, blocks=s.repeat(4, 1)) for c, s in zip(looked.scores, sums, strict=True)]
    worst = [replace(c, blocks=-c.blocks) for c in perfect]
    assert replace(looked, scores=perfect).agreement((2,)) == pytest.approx(1)
    assert replace(looked, scores=worst).agreement((2,)) < 0.99, "a random model attends to everything alike"
