"""How an answer's tokens are chosen and when it ends: transformers decides.

`generate()` makes its logits processors and stopping criteria and passes them to a function of ours (`custom_generate`)
in place of its own loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_OF_ANY_PROMPT = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
"""Processors that are the same whatever a prompt says, and whatever device it is on."""


class Signal(StoppingCriteria):
    """Ends an answer when `given` returns true, whatever its tokens are; it is asked after each of them."""

    def __init__(self, given: Callable[[], bool]) -> None:
        self.given = given

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.given(), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, slots=True)
class Rules:
    """How to choose tokens and when to stop: at one of the tokens `ends`, when one of the `signals` or `criteria` says
    so, or when an answer and its prompt have `max_length` tokens."""

    processors: LogitsProcessorList
    criteria: Sequence[StoppingCriteria]
    signals: Sequence[Signal]
    ends: frozenset[int]
    sample: bool
    max_length: int

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return not self.sample and not self.processors

    @classmethod
    def of(cls, model: Any, tokens: Tensor, **generation: Any) -> Rules:
        """The rules that `model.generate(tokens, **generation)` would follow; the model does not run.

        The usual criteria become numbers to compare: as criteria, which take all tokens as a tensor and return one,
        they take longer than all else that the host does for a token."""
        if tokens.is_cuda:
            rules = _beside(tokens, lambda prompt: cls._of(model, prompt, generation))
            if all(type(one) in _OF_ANY_PROMPT for one in rules.processors):
                return rules
        return cls._of(model, tokens, generation)

    @classmethod
    def _of(cls, model: Any, tokens: Tensor, generation: Mapping[str, Any]) -> Rules:
        def instead(
            model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList, generation_config: Any, **kwargs: Any,
        ) -> Rules:  # fmt: skip
            """What `generate()` calls in place of its own loop."""
            most, kinds = generation_config.max_length, (EosTokenCriteria, Signal)
            others = [one for one in stopping_criteria if type(one) not in kinds and not _ends_at(one, most)]
            signals = [one for one in stopping_criteria if type(one) is Signal]
            lists = [one.eos_token_id.flatten().tolist() for one in stopping_criteria if type(one) is EosTokenCriteria]
            ends = frozenset(chain.from_iterable(lists))
            return cls(logits_processor, others, signals, ends, generation_config.do_sample, most)

        configured = _stand_in(model, generation.get("generation_config", model.generation_config))
        return configured.generate(  # type: ignore[no-any-return]
            tokens, attention_mask=torch.ones_like(tokens), custom_generate=instead, **generation
        )


def _beside(tokens: Tensor, make: Callable[[Tensor], Rules]) -> Rules:
    """Rules for any prompt as long as `tokens`, made on a stream of their own: `generate()` waits for a few numbers of
    its own, and would otherwise wait for all earlier work on the GPU."""
    stream = _aside(tokens.device)
    with torch.cuda.stream(stream):
        rules = make(torch.zeros_like(tokens))
    torch.cuda.current_stream(tokens.device).wait_stream(stream)
    return rules


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One stream for all answers: torch keeps separate memory for every stream."""
    return torch.cuda.Stream(device)


def _ends_at(criterion: StoppingCriteria, most: int) -> bool:
    """Whether a criterion does nothing but end an answer at `most` tokens: it may warn of a longer text, too."""
    if type(criterion) is not MaxLengthCriteria or criterion.max_length != most:
        return False
    return criterion.max_position_embeddings is None or most <= criterion.max_position_embeddings


def _stand_in(model: Any, config: Any) -> Any:
    """The same model, but with a generation config of its own. `generate()` takes from the model's what a call's leaves
    open: stop strings, which need a tokenizer that it loses if the loop is not its own, or a kind of cache. The model's
    cannot be changed meanwhile: others use it."""
    own = copy.copy(getattr(model, "_orig_mod", model))  # shallow: parts and weights are the model's
    own.generation_config = config
    return own
