"""One answer being decoded, with rules, a listener and random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from samkv_kernels.backend import Backend
from samkv_kernels.sending import sent
from samkv_rag.errors import SamKVError
from samkv_rag.model.attention import AttentionPlan
from samkv_rag.model.cache import SlotCache
from samkv_rag.model.rules import Rules


class Hearer(Protocol):
    """Receives every new token, one at a time, as transformers' streamers do; `end` is called once."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class Settling(Protocol):
    """Decides, in the middle of an answer, what is kept of its prompt."""

    @property
    def after(self) -> int:
        """How many new tokens come before this, at least one."""
        ...

    def settle(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        """The next token's logits `(vocab,)` after the new `tokens`, of which `cache` lacks the last. Afterwards it
        holds all of them, and what is kept of the prompt."""
        ...


class Written:
    """A prompt and its answer `(1, T)` on one device, written out when they are asked for."""

    @torch.inference_mode(False)  # they may be asked for outside a step
    def __init__(self, prompt: Tensor, room: int) -> None:
        self._ids = prompt.new_empty(1, prompt.shape[1] + room)
        self._ids[:, : prompt.shape[1]] = prompt
        self._prompt = self._length = prompt.shape[1]

    def upto(self, tokens: Sequence[int]) -> Tensor:
        """The prompt and the new `tokens`, which begin with those of the previous call."""
        missing = tokens[self._length - self._prompt :]
        if missing:
            stop = self._prompt + len(tokens)
            self._ids[0, self._length : stop] = sent(torch.tensor(missing), self._ids.device)
            self._length = stop
        return self._ids[:, : self._length]


class Decoding:
    """An answer being decoded: the `ids` of the kept tokens, and the `cache` of all of them (or of none).

    `tokens` are the new ones; the last of them is not in the cache yet. `ended`: there will be no more, and `error`
    says why if it was not by the rules. Random draws come from `random`, or from torch's own generator. With `settling`
    less is kept from some token on; the rules still get all `ids`.
    """

    def __init__(
        self, ids: Tensor, cache: SlotCache, rules: Rules, hearer: Hearer | None = None,
        random: torch.Generator | None = None, settling: Settling | None = None, backend: Backend = "torch",
    ) -> None:  # fmt: skip
        self.cache = cache
        self.plan = AttentionPlan(cache.positions, backend=backend)
        self.tokens: list[int] = []
        self.ended = False
        self.error: BaseException | None = None
        self._rules, self._hearer, self._random = rules, hearer, random
        self._settling, self._dropped = settling, 0
        self._ahead: Tensor | None = None  # the next token's logits, from settling until it is heard
        self._prompt, self._room = ids.shape[1], max(rules.max_length - ids.shape[1], 1)
        self._here: Written | None = None  # few answers are needed on the host
        self._there = Written(ids, self._room)
        self._drawn: Tensor | None = None

    @property
    def _length(self) -> int:
        return self._prompt + len(self.tokens)

    @property
    def ids(self) -> Tensor:
        """All tokens so far, `(1, T)`."""
        return self._there.upto(self.tokens)

    @property
    def next(self) -> tuple[Tensor, Tensor]:
        """The tokens whose entries the cache lacks, usually one, and their positions: `(1, Q)` twice."""
        here, stop = self.cache.get_seq_length(), self._length - self._dropped
        return self.ids[:, here + self._dropped :], self.cache.positions[None, here:stop]

    @property
    def plain(self) -> bool:
        """Whether the next token is always the likeliest one."""
        return self._rules.plain

    def cut_back(self) -> None:
        """Remove from the cache a step that broke off before its token was chosen."""
        held = self._length - self._dropped
        if self._ahead is None and self.cache.get_seq_length() >= held:
            self.cache.crop_to(held - 1)

    @property
    def due(self) -> bool:
        """Whether it is time to decide what is kept of the prompt."""
        return self._settling is not None and len(self.tokens) >= self._settling.after

    def settle(self) -> Tensor:
        """Decide what is kept; returns the next token's logits `(1, vocab)`, the same until that token is heard. An
        interruption ends the answer: what the cache holds is then unknown."""
        if self._ahead is None:
            try:
                self._ahead = self._settle()[None]
            except Exception:
                raise
            except BaseException:
                self.fail(SamKVError("The answer was interrupted while it was decided what to keep; ask again."))
                raise
        return self._ahead

    def keep_all(self) -> None:
        """Do without settling: go on with everything, as if its pass had never begun."""
        self._settling = None
        self.cache.crop_to(self._length - self._dropped - 1)

    def _settle(self) -> Tensor:
        assert self._settling is not None
        logits = self._settling.settle(self.cache, self.tokens)
        self._dropped = self._length - self.cache.get_seq_length()
        self.plan = AttentionPlan.like(self.plan, positions=self.cache.positions, packed=self.cache.packed)
        return logits

    def choose(self, logits: Tensor) -> Tensor:
        """The next token `(1,)` by its `logits` `(1, vocab)`. One that was drawn but not heard is not drawn again: an
        interrupted step does not change the random numbers that come next."""
        if self._drawn is not None:
            return self._drawn
        scores = self._rules.processors(self.ids, logits.float())  # type: ignore[arg-type]
        if not self._rules.sample:
            return scores.argmax(-1)
        self._drawn = torch.multinomial(scores.softmax(-1), 1, generator=self._random)[:, 0]
        return self._drawn

    def hear(self, token: int, heard: Tensor) -> None:
        """Go on with the chosen `token`, which is `heard` `(1,)` as a tensor on the host; what goes wrong is this
        answer's own error."""
        try:
            self._drawn = None
            if self._ahead is not None:
                self._ahead = self._settling = None
            self.tokens.append(token)
            try:
                if self._hearer is not None:
                    self._hearer.put(heard)
            finally:  # on ctrl-C too, maybe meant for another answer: this one must still end
                if self._is_last(token):
                    self._end()
        except Exception as error:
            self.fail(error)

    def _is_last(self, token: int) -> bool:
        """Whether a token ends the answer, which is decided on the host. All criteria are asked every time."""
        said = [one.given() for one in self._rules.signals]
        said += [bool(one(self._said, None).all()) for one in self._rules.criteria]
        return any(said) or token in self._rules.ends or self._length >= self._rules.max_length

    @property
    def _said(self) -> Tensor:
        """`ids` on the host."""
        if self._here is None:
            self._here = Written(self.ids[:, : self._prompt].cpu(), self._room)
        return self._here.upto(self.tokens)

    def _end(self) -> None:
        """End the hearer first: a thread that finds that an answer has `ended` stops listening to it."""
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


def take(decodings: Sequence[Decoding], logits: Tensor) -> None:
    """Choose the next token of each by its row of `logits` `(B, vocab)`, all on the device first: the host waits only
    once. What goes wrong with one of them is its own error."""
    try:
        heard = _chosen(decodings, logits).cpu()
    except Exception as error:  # of the device: not one answer's alone
        for decoding in decodings:
            decoding.fail(error)
        return
    for decoding, token, one in zip(decodings, heard.tolist(), heard.split(1), strict=True):
        if not decoding.ended:
            decoding.hear(token, one)


def _chosen(decodings: Sequence[Decoding], logits: Tensor) -> Tensor:
    """The next tokens `(B,)`; arbitrary where choosing failed."""
    chosen = logits.argmax(-1)
    for row, decoding in enumerate(decodings):
        if decoding.plain:
            continue
        try:
            chosen[row] = decoding.choose(logits[row : row + 1])[0]
        except Exception as error:
            decoding.fail(error)
    return chosen
