"""Full prefill's own answer to a question, and what a method leaves of it: the measure that decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from samkv_rag.engine import SamKVEngine
from samkv_rag.methods import Method, Prepared, Run
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.decoding import Settling
from samkv_rag.model.generation import GenerationOptions, generation_kwargs
from samkv_rag.model.rules import Rules
from samkv_rag.types import PromptPlan

ANSWER_TOKENS = 32
WORST = 10.0
"""The most nats that one question can lose. An answer that is given once in 20,000 times is lost; how much rarer
another one is should decide nothing."""


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """What full prefill answers greedily: token `ids`, at most `most` of them, with the end token if it comes to one,
    and their joint log-`likelihood` in nats."""

    ids: tuple[int, ...]
    likelihood: float
    most: int = ANSWER_TOKENS


@dataclass(frozen=True, slots=True)
class Left:
    """What a method leaves of that answer: whether greedy decoding gives the `same` tokens, and the `loss` of their
    joint log-likelihood in nats, from 0 (or a gain, which makes up for no other loss) to `WORST`."""

    same: bool
    loss: float


def own_answer(engine: SamKVEngine, plan: PromptPlan, most: int = ANSWER_TOKENS) -> OwnAnswer:
    """Full prefill's answer to the plan's prompt, of at most `most` tokens."""
    adapter = engine.adapter
    decoding = adapter.loop.begin(plan.token_ids, None, **_greedily(engine, most))
    ids = tuple(adapter.loop.finish(decoding))
    logits = adapter.logits_behind([*plan.token_ids, *ids[:-1]], decoding.cache, len(ids))
    return OwnAnswer(ids, likelihood(ids, logits), most)


def method_answer(engine: SamKVEngine, plan: PromptPlan, method: Method, most: int = ANSWER_TOKENS) -> list[int]:
    """Token ids of `method`'s own answer, decoded greedily like full prefill's; the plan's chunks must be stored."""
    prepared = method.prepare(Run(plan, engine.adapter, engine.store, room=most))
    return prepared.generate(engine.adapter.loop, **_greedily(engine, most))


def left_of(own: OwnAnswer, engine: SamKVEngine, plan: PromptPlan, method: Method) -> Left:
    """What `method` leaves of full prefill's `own` answer; the plan's chunks must be stored."""
    run = Run(plan, engine.adapter, engine.store, room=len(own.ids))
    prepared = method.prepare(run)
    logits = forced_logits(engine.adapter, prepared, own.ids)
    loss = min(WORST, max(0.0, own.likelihood - likelihood(own.ids, logits)))
    return Left(_chosen(engine, prepared.ids, own, logits), loss)


def forced_logits(adapter: ModelAdapter, prepared: Prepared, answer: Sequence[int]) -> Tensor:
    """Logits by which each token of `answer` is chosen after those before it, fp32 `(len(answer), vocab)`, in one
    forward. This uses up what was prepared."""
    ids, settling = [*prepared.ids, *answer[:-1]], prepared.settling
    if settling is not None and prepared.cache is not None and len(answer) > settling.after:
        return _settled_logits(adapter, prepared, settling, answer)
    if prepared.cache is None or prepared.logits is None:
        return adapter.logits_behind(ids, None, len(answer))
    first = prepared.logits[None]
    if len(answer) == 1:
        return first
    return torch.cat([first, adapter.logits_behind(ids, prepared.cache, len(answer) - 1)])


def _settled_logits(adapter: ModelAdapter, prepared: Prepared, settling: Settling, answer: Sequence[int]) -> Tensor:
    """The same, where what is kept is decided in the middle of the answer."""
    written, cache = answer[: settling.after], prepared.cache
    assert cache is not None
    begun = forced_logits(adapter, replace(prepared, settling=None), written)
    parts = [begun, settling.settle(cache, written)[None]]
    if left := answer[settling.after : -1]:
        parts.append(adapter.logits_of(left, cache))
    return torch.cat(parts)


def likelihood(answer: Sequence[int], logits: Tensor) -> float:
    """Log-likelihood of `answer` in nats, by its `logits` `(len(answer), vocab)`."""
    tokens = torch.tensor(answer, device=logits.device)[:, None]
    return float(logits.log_softmax(-1).gather(1, tokens).sum())


def _chosen(engine: SamKVEngine, ids: Sequence[int], own: OwnAnswer, logits: Tensor) -> bool:
    """Whether greedy decoding after the kept `ids` chooses the `own` answer: by the model's own rules (a repetition
    penalty takes in the context), as in decoding."""
    text = torch.tensor([[*ids, *own.ids]], device=logits.device)
    rules = Rules.of(engine.adapter.model, text[:, : len(ids)], **_greedily(engine, own.most))
    for index, token in enumerate(own.ids):
        seen: Any = text[:, : len(ids) + index]
        scores: Any = logits[index : index + 1]
        if int(rules.processors(seen, scores).argmax()) != token:
            return False
    return True


def _greedily(engine: SamKVEngine, most: int) -> dict[str, Any]:
    options = GenerationOptions(max_new_tokens=most)
    return generation_kwargs(engine.adapter.model, engine.tokenizer, options, lambda: False)
