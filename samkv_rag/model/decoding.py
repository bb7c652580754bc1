"""One answer in the making.

Which token comes next and when an answer ends is transformers' business: `generate()` makes its logits processors and
stopping criteria and hands them to a function of ours (`custom_generate`) in place of its own loop. Every answer has
its own, and its own listener and random numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.cache import SlotCache

_stop_strings = threading.Lock()


class Hearer(Protocol):
    """Is told every new token, one at a time, as transformers tells its streamers; `end` comes once."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How to choose tokens and when to stop. An answer and its prompt have at most `max_length` tokens."""

    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    sample: bool
    max_length: int

    @classmethod
    def of(cls, model: Any, tokens: Tensor, **generation: Any) -> Rules:
        """What `model.generate(tokens, **generation)` would go by; the model does not run."""

        def instead(
            model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList, generation_config: Any, **kwargs: Any,
        ) -> Rules:  # fmt: skip
            return cls(logits_processor, stopping_criteria, generation_config.do_sample, generation_config.max_length)

        with _without_stop_strings(model.generation_config):
            return model.generate(  # type: ignore[no-any-return]
                tokens, attention_mask=torch.ones_like(tokens), custom_generate=instead, **generation
            )


@contextmanager
def _without_stop_strings(config: Any) -> Iterator[None]:
    """The model's own stop strings need a tokenizer, which `generate()` loses when the loop is not its own.

    They are among the criteria that it is given (see `generation_kwargs`).
    """
    with _stop_strings:
        theirs, config.stop_strings = config.stop_strings, None
        try:
            yield
        finally:
            config.stop_strings = theirs


class Decoding:
    """An answer in the making: `ids` of the kept tokens, and the `cache` of all of them (or of none).

    `tokens` are the new ones; the last of them is not in the cache yet. `ended` says that there will be no more, and
    `error` why not, if that is not in the rules. Draws come from `random`, or from torch's own generator.
    """

    def __init__(
        self, ids: Tensor, cache: SlotCache, rules: Rules, hearer: Hearer | None = None,
        random: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        self.cache = cache
        self.plan = AttentionPlan(cache.positions)
        self.tokens: list[int] = []
        self.ended = False
        self.error: BaseException | None = None
        self._rules, self._hearer, self._random = rules, hearer, random
        self._ids = ids.new_empty(1, max(rules.max_length, ids.shape[1] + 1))
        self._ids[:, : ids.shape[1]] = ids
        self._said = self._ids.cpu()
        self._length = ids.shape[1]

    @property
    def ids(self) -> Tensor:
        """All tokens so far, `(1, T)`."""
        return self._ids[:, : self._length]

    @property
    def next(self) -> tuple[Tensor, Tensor]:
        """The tokens whose entries the cache lacks, usually one, and their positions: `(1, Q)` twice."""
        here = slice(self.cache.get_seq_length(), self._length)
        return self._ids[:, here], self.cache.positions[None, here]

    def settle(self) -> None:
        """Cut back a cache to which a step was added that broke off before its token was chosen."""
        if self.cache.get_seq_length() >= self._length:
            self.cache.crop_to(self._length - 1)

    def take(self, logits: Tensor) -> None:
        """Choose the next token from `logits` `(1, vocab)`; what goes wrong is this answer's own error."""
        try:
            self._take(logits.float())
        except Exception as error:
            self.fail(error)

    def _take(self, logits: Tensor) -> None:
        """The host waits for the device once, for the token: whether it ends the answer is found on the host."""
        scores = self._rules.processors(self.ids, logits)  # type: ignore[arg-type]
        token = self._choose(scores)
        self._ids[0, self._length] = token[0]
        heard = token.cpu()
        self._said[0, self._length] = heard[0]
        self._length += 1
        self.tokens.append(int(heard))
        if self._hearer is not None:
            self._hearer.put(heard)
        if bool(self._rules.criteria(self._said[:, : self._length], None).all()):
            self._end()

    def _choose(self, scores: Tensor) -> Tensor:
        if not self._rules.sample:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]

    def _end(self) -> None:
        """The hearer comes first: who sees that an answer has `ended`, in another thread, hears it no further."""
        try:
            if self._hearer is not None:
                self._hearer.end()
        except Exception as error:
            self.error = error
        finally:
            self.ended = True

    def fail(self, error: BaseException) -> None:
        """End with an error, which `result` raises."""
        self.error, self.ended = error, True

    def result(self) -> list[int]:
        """The new token ids of an answer that has ended; raises its error."""
        if self.error is not None:
            raise self.error
        return self.tokens
