"""Turn a chat model's fields and a call's keywords into a request to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import LangSmithParams
from langchain_core.messages import BaseMessage

from langchain_samkv.messages import Roles, converted, question_of
from langchain_samkv.tools import form_of
from samkv_rag import SamKVEngine, SamKVError
from samkv_rag.calls import overridden
from samkv_rag.prompt.reasoning import ReasoningReader
from samkv_rag.prompt.template import THINKING, Conversation, variables
from samkv_rag.prompt.tools import Form
from samkv_rag.stream import AnswerStream

DEFAULT_MAX_TOKENS = 256

_GENERATION = ("temperature", "top_p", "top_k", "seed")
_CALL = ("method", "keep", "timeout")
_FORM = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
# Keywords that LangChain itself leaves in a call, and those that mean nothing to a local model.
_NOT_OURS = ("stream", "stream_usage", "strict")
_KNOWN = {*_GENERATION, *_CALL, *_FORM, *_NOT_OURS, "max_tokens", "model", "question", "chat_template_kwargs"}


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a chat model: the `fields` of the model, overridden by the call's keywords; `template` has more
    variables for its chat template."""

    fields: Mapping[str, Any]
    stop: Sequence[str]
    form: Form
    template: Mapping[str, Any]

    @classmethod
    def of(cls, defaults: Mapping[str, Any], stop: Sequence[str] | None, keywords: Mapping[str, Any]) -> Request:
        """The request of a call; raises `SamKVError` on a keyword that means nothing here."""
        if unknown := sorted(set(keywords) - _KNOWN):
            known = ", ".join(sorted(_KNOWN - set(_NOT_OURS) | {"stop"}))
            raise SamKVError(f"ChatSamKV does not know {', '.join(unknown)}; a call may have: {known}.")
        form = form_of(*(keywords.get(name) for name in _FORM))
        given = defaults.get("stop") if stop is None else stop
        stops = [given] if isinstance(given, str) else list(given or ())
        own = (named.get("chat_template_kwargs") for named in (defaults, keywords))
        template = variables({THINKING: False} if form.forced else {}, *own)
        return cls(overridden(defaults, keywords), stops, form, template)

    def reader(self, engine: SamKVEngine) -> ReasoningReader | None:
        """What separates thoughts from the rest of the answer; None if there are none."""
        return self.form.reader(engine.tokenizer, {**engine.chat_template_kwargs, **self.template})

    def start(
        self, engine: SamKVEngine, roles: Roles, messages: Sequence[BaseMessage], thoughts: ReasoningReader | None
    ) -> AnswerStream:  # fmt: skip
        """Pass the call to the engine; the work starts in a thread of its own. The answer may contain `thoughts`."""
        options = {name: self.fields[name] for name in _GENERATION if self.fields.get(name) is not None}
        most = self.fields.get("max_tokens")
        return engine.stream(
            Conversation(converted(messages, roles, self.form.instructions), template=self.template),
            self.fields.get("question") or question_of(messages, roles),
            **{name: self.fields.get(name) for name in _CALL},
            max_new_tokens=DEFAULT_MAX_TOKENS if most is None else most,
            stop=self.stop,
            grammar=self.form.grammar(thoughts),
            **options,
        )


def traced(
    params: LangSmithParams, stop: Sequence[str] | None, keywords: Mapping[str, Any], model: str
) -> LangSmithParams:  # fmt: skip
    """The standard tracing parameters, with our provider's name."""
    params["ls_provider"] = "samkv"
    params["ls_model_name"] = str(keywords.get("model") or model)
    if stop:
        params["ls_stop"] = [stop] if isinstance(stop, str) else list(stop)
    return params
