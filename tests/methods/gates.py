"""What the gates compare: prompts on every wiring, and stock forwards over plain, frozen and thinned entries."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache

from samkv_rag import ChunkKVStore, SamKV
from samkv_rag.methods import Prepared
from samkv_rag.methods.profiled import SEES, WIDE
from samkv_rag.types import PromptPlan, Selection
from tests import oracles
from tests.cases import WIRINGS
from tests.models import adapter
from tests.oracles import Kept, Prompted, stock, stock_logits

TOLERANCE = 1e-4
VISIBLE = 1e-2
NEW_TOKENS = 8
BY_HAND = 5
NEXT = 7
SOME = ("llama", "llama-longrope-crossed", "mistral-sliding", "gemma2", "gemma3", "gemma4", "gemma4-sharing", "cohere2")

before = partial(SamKV, settle="before")
dropping = partial(SamKV, rest="drop")
every_wiring = pytest.mark.parametrize("wiring", WIRINGS)
some_wirings = pytest.mark.parametrize("wiring", SOME)


@cache
def prompted(wiring: str, lengths: tuple[int, ...] = (37, 16, 30, 5)) -> Prompted:
    store = ChunkKVStore(":memory:")
    return Prompted(oracles.stored_plan(adapter(wiring), store, lengths), adapter(wiring), store)


def plain_logits(wiring: str, plan: PromptPlan) -> Tensor:
    with torch.no_grad():
        return stock(wiring, "sdpa")(torch.tensor([plan.token_ids])).logits[0, -1].float()  # type: ignore[no-any-return]


def plain_tokens(wiring: str, plan: PromptPlan, **generation: Any) -> list[int]:
    ids = torch.tensor([plan.token_ids])
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "attention_mask": torch.ones_like(ids), **generation}
    return stock(wiring, "sdpa").generate(ids, **options)[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def frozen_logits(wiring: str, case: Prompted, prepared: Prepared, **how: Any) -> Tensor:
    """Next-token logits of ONE stock forward over all kept ids; what is not recomputed has its stored entries."""
    kept = Kept.of(case.plan, prepared.selection)
    past = oracles.frozen_cache(wiring, case.plan, kept, **how)
    return stock_logits(stock(wiring), kept.ids, kept.positions, past)[-1]


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the size of the logits where that is below 1 (Cohere's: about 0.01)."""
    return float((got - want).abs().max() / want.square().mean().sqrt().clamp(max=1))


def whole_past(wiring: str, case: Prompted, recomputed: tuple[Tensor, ...], **how: Any) -> tuple[Tensor, Cache]:
    """ONE stock forward over the whole prompt, in which what is not recomputed has its stored entries. From layer
    `narrow` on, by default above the lower quarter, what precedes the question attends only to what is computed, to
    positions `also`, and to the share `sees` of the rest that most closely precedes what is computed there. Returns the
    logits `(vocab,)` at its end, and the entries of all."""
    whole = Kept.of(case.plan, Selection(Selection.all_of(case.plan).kept, recomputed))
    narrow, sees = how.pop("narrow", int(WIDE * case.adapter.shape.layers)), how.pop("sees", SEES)
    also = how.pop("also", [])
    past = oracles.frozen_cache(wiring, case.plan, whole, **how)
    before = torch.arange(case.plan.n_tokens) < case.plan.question.start
    own = (whole.fresh & before).nonzero()[:, 0].tolist()
    ahead = {at: next(one for one in own if one >= at) - at for at in range(max(own, default=-1) + 1)}
    closest = sorted(ahead.keys() - set(also), key=lambda at: (ahead[at], at))
    seen = whole.fresh.clone()
    seen[[*also, *closest[: len(own) + int(sees * (case.plan.n_tokens - len(own) - len(also)) + 1e-9)]]] = True
    hidden = ~seen & before[:, None]
    with oracles.hiding(stock(wiring), narrow, hidden):
        return stock_logits(stock(wiring), whole.ids, whole.positions, past)[-1], past


def settled_past(wiring: str, case: Prompted, prepared: Prepared, **how: Any) -> tuple[Tensor, Tensor, Cache]:
    """The same logits, and the positions and entries of what is kept."""
    first, past = whole_past(wiring, case, prepared.selection.recomputed, **how)
    kept = Kept.of(case.plan, prepared.selection)
    return first, kept.positions, oracles.thinned(past, kept.positions)


def settled_logits(wiring: str, case: Prompted, prepared: Prepared, **how: Any) -> Tensor:
    """Logits `(2, vocab)` of the first new token, which attends to everything, and of the one after `NEXT`, which
    attends to what is kept."""
    first, positions, past = settled_past(wiring, case, prepared, **how)
    return torch.stack([first, stock_logits(stock(wiring), [NEXT], positions[-1:] + 1, past, before=positions)[-1]])


def spoken(case: Prompted, prepared: Prepared) -> Tensor:
    """From the engine, what `settled_logits` computes by hand."""
    return torch.stack([case.logits(prepared), case.adapter.next_logits([*prepared.ids, NEXT], prepared.cache)])


def mixture(theta: Any) -> oracles.Mix | None:
    """Fusion by hand: theta * new + (1 - theta) * old; "cosine" weights the old entry by half their similarity."""
    if theta == 1.0:
        return None

    def mix(new: Tensor, old: Tensor) -> Tensor:
        if theta != "cosine":
            return theta * new + (1 - theta) * old
        like = (new * old).sum(-1, keepdim=True) / (new.norm(dim=-1, keepdim=True) * old.norm(dim=-1, keepdim=True))
        share = like.clamp(min=0) / 2
        return (1 - share) * new + share * old

    return mix
