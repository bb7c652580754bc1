"""From a caller's options to transformers' own rules: sampling, stop strings, streaming, cancelling, grammars."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.configuration_utils import GenerationMode

from samkv_rag.errors import SamKVError
from samkv_rag.model.detokenizer import Detokenizer
from samkv_rag.model.grammar import GrammarGuide
from samkv_rag.model.rules import Signal
from samkv_rag.options import Options, Positive, Seed, Within, fits

logger = logging.getLogger(__name__)

COLDEST = 1e-6
"""A lower temperature is greedy: divided by it, logits are no finite numbers."""


@dataclass(frozen=True)
class GenerationOptions(Options):
    """How to decode: greedy unless `temperature` is above 0. `stop` strings end the answer and are cut off.

    `grammar` (llguidance's form of Lark; needs the extra `tools`) is what the answer must fit, token by token.
    """

    max_new_tokens: Positive = 256
    temperature: Annotated[float, Within(0)] = 0.0
    top_p: Annotated[float, Within(0, 1)] | None = None
    top_k: Positive | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p == 0:
            raise SamKVError("top_p must be above 0.")
        if isinstance(self.stop, str):  # a string is a sequence too: of single letters
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(dict.fromkeys(self.stop)))  # each costs milliseconds
        if "" in self.stop:
            raise SamKVError("A stop text is empty: every answer would end at once. Leave it out.")
        if not fits(self.seed, Seed | None):
            raise SamKVError(f"seed must be from -2**63 to 2**64 - 1, which torch can take, not {self.seed}.")


class Listener:
    """Receives every new token: notes when the first came, passes finished text on, cuts at stop strings."""

    def __init__(
        self, tokenizer: Any, on_text: Callable[[str], None] | None, stop: Sequence[str], strip: bool = False
    ) -> None:
        self.first_token_at: float | None = None
        self._on_text = on_text
        self._detokenizer = Detokenizer(tokenizer)
        self._cutter = StopCutter(stop)
        self._strip = self._leading = strip
        self._trailing = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the next token `(1,)`."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if self._on_text is not None:
            self._pass_on(self._cutter.feed(self._detokenizer.feed(int(value))))

    def end(self) -> None:
        """Pass on what was held back."""
        if self._on_text is not None:
            self._pass_on(self._cutter.feed(self._detokenizer.rest()) + self._cutter.rest())

    def _pass_on(self, out: str) -> None:
        if self._leading:
            out = out.lstrip()
        if self._strip:
            out = self._without_trailing(out)
        if out and self._on_text is not None:
            self._leading = False
            self._on_text(out)

    def _without_trailing(self, text: str) -> str:
        """What may be shown: white space is held back until more text shows that it is not the answer's end."""
        text = self._trailing + text
        shown = text.rstrip()
        self._trailing = text[len(shown) :]
        return shown


class StopCutter:
    """Passes text on up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = list(stop)
        self._held = ""
        self._closed = False

    def feed(self, text: str) -> str:
        """What may be shown after `text` came in."""
        if self._closed:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._closed = True
            return self._held[: min(found)]
        safe = len(self._held) - self._pending()
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def rest(self) -> str:
        """What was held back and turned out not to be a stop string."""
        return "" if self._closed else self._held

    def _pending(self) -> int:
        """The length of the longest tail of the held text that some stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0


class StopsOfAnswer(StopStringCriteria):
    """Looks for stop strings in one answer alone, after each of its tokens: one that the prompt's end and the answer's
    beginning make up together is not in the answer."""

    _begin: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._begin is None:
            self._begin = input_ids.shape[1] - 1
        return super().__call__(input_ids[:, self._begin :], scores, **kwargs)  # type: ignore[no-any-return]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    cutter = StopCutter(stop)
    return cutter.feed(text) + cutter.rest()


def generation_kwargs(
    model: Any, tokenizer: Any, options: GenerationOptions, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Keywords for `Loop.begin`; what the caller did not set comes from the model's own generation config."""
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens, config.max_length = options.max_new_tokens, None
    config.num_beams, config.num_return_sequences, config.use_cache = 1, 1, True
    config.return_dict_in_generate, config.cache_implementation, config.token_healing = False, None, False
    config.do_sample = options.temperature >= COLDEST
    config.temperature = options.temperature if config.do_sample else None
    config.top_p = (options.top_p if options.top_p is not None else config.top_p) if config.do_sample else None
    config.top_k = (options.top_k if options.top_k is not None else config.top_k) if config.do_sample else None
    if config.pad_token_id is None:
        config.pad_token_id = next(iter(end_tokens(model)), None)
    criteria, processors = StoppingCriteriaList([Signal(cancelled)]), LogitsProcessorList()
    config.stop_strings = None
    if stop := stop_texts(model, options):
        criteria.append(StopsOfAnswer(tokenizer, list(stop)))
    if options.grammar is not None:
        guide = GrammarGuide(tokenizer, options.grammar, end_tokens(model))
        processors.append(guide.mask)
        criteria.append(guide.finished)
    return {"generation_config": config, "stopping_criteria": criteria, "logits_processor": processors}


def warn_of_other_modes(model: Any) -> None:
    """Warn when the model's own generation config asks for what answers from caches do not do."""
    config = model.generation_config
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION):
        logger.warning(
            "The generation config of this %s asks for %s; answers are decoded greedily, or by sampling with a "
            "temperature. To be without this warning, set its num_beams to 1, penalty_alpha and the like to None.",
            type(model).__name__, mode.value.replace("_", " "),
        )  # fmt: skip


def stop_texts(model: Any, options: GenerationOptions) -> tuple[str, ...]:
    """The texts that end an answer: the caller's, or else the model's own."""
    own = model.generation_config.stop_strings or ()
    return tuple(options.stop or ([own] if isinstance(own, str) else own))


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens with which the model ends an answer."""
    eos = model.generation_config.eos_token_id
    return () if eos is None else tuple(torch.as_tensor(eos).flatten().tolist())


def finished_by_model(model: Any, token_ids: Sequence[int]) -> bool:
    """True when the last token is one of the model's end tokens."""
    return bool(token_ids) and token_ids[-1] in end_tokens(model)


def random_of(seed: int | None, device: torch.device) -> torch.Generator | None:
    """The random draws of one answer, the same whatever else is decoded; without a seed torch's own (None)."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)
