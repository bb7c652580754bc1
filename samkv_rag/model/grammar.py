"""Decoding only what a grammar allows: `llguidance` says which tokens may come next."""

from __future__ import annotations

import importlib
import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from samkv_rag.errors import SamKVError

_tables: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
_making = threading.Lock()


class GrammarGuide:
    """Follows one answer through a grammar: `mask` and `finished` are what `generate()` takes."""

    def __init__(self, tokenizer: Any, grammar: str, ends: tuple[int, ...]) -> None:
        guidance = _library()
        self._matcher = guidance.LLMatcher(_table(tokenizer, ends, guidance), grammar)
        self._seen: int | None = None
        self._check("The grammar cannot be used")

    @property
    def mask(self) -> LogitsProcessor:
        """Gives minus infinity to every token that would leave the grammar."""
        return _Mask(self)

    @property
    def finished(self) -> StoppingCriteria:
        """Ends the answer when the grammar does."""
        return _Finished(self)

    def masked(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._follow(input_ids)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check("The answer left the grammar")
        allowed = np.unpackbits(bits, bitorder="little")[: scores.shape[-1]].astype(bool)
        forbidden = torch.ones(scores.shape[-1], dtype=torch.bool)
        forbidden[: len(allowed)] = ~torch.from_numpy(allowed)
        return scores.masked_fill(forbidden.to(scores.device), float("-inf"))

    def stopped(self, input_ids: Tensor) -> bool:
        self._follow(input_ids)
        return bool(self._matcher.is_stopped())

    def _follow(self, input_ids: Tensor) -> None:
        """Take in the tokens that are new since the last call; the first call gets the prompt alone."""
        length = input_ids.shape[1]
        fresh = input_ids[0, length if self._seen is None else self._seen :].tolist()
        if fresh and not self._matcher.is_stopped():
            self._matcher.consume_tokens(fresh)
        self._seen = length

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise SamKVError(f"{what}: {self._matcher.get_error()}")


class _Mask(LogitsProcessor):
    def __init__(self, guide: GrammarGuide) -> None:
        self._guide = guide

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._guide.masked(input_ids, scores)


class _Finished(StoppingCriteria):
    def __init__(self, guide: GrammarGuide) -> None:
        self._guide = guide

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stopped = self._guide.stopped(input_ids)
        return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)


def _library() -> Any:
    try:
        importlib.import_module("llguidance.hf")
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise SamKVError("Tool calls and structured output need llguidance: pip install 'samkv-rag[tools]'.") from error


def _table(tokenizer: Any, ends: tuple[int, ...], guidance: Any) -> Any:
    """The library's own form of the tokenizer: expensive to make, so kept as long as the tokenizer lives."""
    with _making:
        made = _tables.setdefault(tokenizer, {})
        if ends not in made:
            try:
                made[ends] = guidance.hf.from_tokenizer(tokenizer, eos_token=list(ends) or None)
            except ValueError as error:
                raise SamKVError(
                    f"Tool calls and structured output need a fast tokenizer (tokenizer.json): {error}"
                ) from error
        return made[ends]
