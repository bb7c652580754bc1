"""How a request is to be answered: the caller's keywords, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.methods import Method, resolve_method
from samkv_rag.model.generation import GenerationOptions
from samkv_rag.model.given import refuse_unknown_tokens
from samkv_rag.prompt.checks import require_texts
from samkv_rag.types import PromptPlan


@dataclass(frozen=True, slots=True)
class Call:
    """The method and the options of one request; `strip` removes white space from both ends of the answer."""

    method: Method
    options: GenerationOptions
    strip: bool

    @classmethod
    def of(
        cls, method: str | Method, keep: float | None, generation: Mapping[str, Any], strip: bool = False
    ) -> Call:  # fmt: skip
        """Make a call from keywords; raises `SamKVError` on an unknown method or option."""
        known = {field.name for field in fields(GenerationOptions)}
        if unknown := sorted(set(generation) - known):
            raise SamKVError(f"Unknown generation options: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        options = GenerationOptions(**generation)
        require_texts(options.stop, "stop")
        return cls(resolve_method(method, keep), options, strip)


def check_fits(plan: PromptPlan, options: GenerationOptions, config: Any) -> None:
    """Raise `SamKVError` if prompt and answer do not fit into the model's positions, or a prompt and its question where
    that is not in it, or if the model does not know their tokens."""
    refuse_unknown_tokens(chain(plan.token_ids, plan.question.token_ids), config)
    limit, asked = getattr(config, "max_position_embeddings", None), len(plan.question.token_ids)
    if limit is not None and not plan.question.in_prompt and plan.n_tokens + asked > limit:
        raise SamKVError(
            f"The prompt has {plan.n_tokens} tokens and the question, which is not in it, {asked}, but the model has "
            f"{limit} positions; ask a shorter question."
        )
    if limit is not None and plan.n_tokens + options.max_new_tokens > limit:
        raise SamKVError(
            f"The prompt has {plan.n_tokens} tokens and up to {options.max_new_tokens} more were asked for, but the "
            f"model has {limit} positions; retrieve fewer or shorter chunks, shorten the rest of the prompt, or lower "
            "max_new_tokens."
        )


def overridden(standing: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A caller's standing options, overridden by those of one call.

    A standing `keep` belongs to the standing method: a call with another method has its own, or none.
    """
    other = given.get("method") is not None
    return {name: value for name, value in standing.items() if not (other and name == "keep")} | dict(given)


def short(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Default to few new tokens: answers from passages are short, but a caller may ask for more."""
    return {"max_new_tokens": 64, **generation}
