"""Turn a call of the framework into a request to the engine, tools included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.tools.types import BaseTool

from llama_index.llms.samkv.fields import SamKVFields
from llama_index.llms.samkv.messages import calls_in, convert
from llama_index.llms.samkv.requests import TOOL_OPTIONS, ChatRequest, CompletionRequest, call_options
from llama_index.llms.samkv.tools import arguments_of, form_of, specs_of
from samkv_rag import SamKVError
from samkv_rag.engines import meant, own_method
from samkv_rag.prompt.grammar import OPEN
from samkv_rag.prompt.plan import Prompt
from samkv_rag.prompt.reasoning import ReasoningReader
from samkv_rag.prompt.template import THINKING, Conversation, variables
from samkv_rag.prompt.tools import Form, ToolSpec


class SamKVCalling(SamKVFields):
    """Makes requests to the engine.

    Tools go through the model's chat template, or into a system message if it knows none. Calls are decoded under a
    grammar, so that they fit their schemas.
    """

    def _defaults(self) -> dict[str, Any]:
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "keep")
        return {name: getattr(self, name) for name in names} | {"method": own_method(self.method, self._holder.given)}

    def _options(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """The engine's keywords for a call with the keywords `said`."""
        defaults = self._defaults()
        return call_options(defaults, meant(said, defaults["method"], self._holder.given))

    # -- requests ----------------------------------------------------------------------------------------------

    def _completion_request(self, prompt: str, formatted: bool, given: Mapping[str, Any]) -> CompletionRequest:
        template, rest = self._template(given, forced=False)
        asked = self._completion_prompt(prompt, formatted, template)
        return CompletionRequest(asked, self._options(rest), self._thoughts(asked, Form()))

    def _completion_prompt(self, prompt: str, formatted: bool, template: Mapping[str, Any]) -> Prompt:
        """The prompt as one user message for a chat model, unless it is already in the model's own format."""
        if formatted:
            return prompt
        own = self.completion_to_prompt
        if own is not None and own is not default_completion_to_prompt:
            return own(prompt)
        return Conversation([{"role": "user", "content": prompt}], template=template) if self.is_chat_model else prompt

    def _chat_request(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatRequest:
        asked = {name: given[name] for name in TOOL_OPTIONS if name in given}
        form = form_of(asked)
        template, rest = self._template(given, form.forced)
        options = self._options({name: rest[name] for name in rest if name not in asked})
        if not form.tools:
            prompt = self._chat_prompt(messages, (), template)
            return ChatRequest(prompt, options, self._thoughts(prompt, form))
        prompt = self._chat_prompt([*self._told(form), *messages], form.tools, template)
        thoughts = self._thoughts(prompt, form)
        options["grammar"] = form.grammar(thoughts)
        return ChatRequest(prompt, options, thoughts, form.names, form.parallel)

    def _template(self, given: Mapping[str, Any], forced: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Variables of the chat template, and the other keywords. Where a call is forced, thinking is turned off."""
        rest = dict(given)
        own = self.chat_template_kwargs, rest.pop("chat_template_kwargs", None)
        return variables({THINKING: False} if forced else {}, *own), rest

    def _thoughts(self, prompt: Prompt, form: Form) -> ReasoningReader | None:
        """What separates thoughts from the rest of the answer; None if there are none."""
        if not isinstance(prompt, Conversation):
            return None
        return form.reader(self.tokenizer, {**self.engine.chat_template_kwargs, **prompt.template})

    def _told(self, form: Form) -> list[ChatMessage]:
        """What the template does not say about the tools, as a system message."""
        text = form.demand if self._renders_tools else form.instructions
        return [ChatMessage(role=MessageRole.SYSTEM, content=text)] if text else []

    def _chat_prompt(
        self, messages: Sequence[ChatMessage], specs: Sequence[ToolSpec], template: Mapping[str, Any]
    ) -> Prompt:  # fmt: skip
        own = self.messages_to_prompt
        if own is not None and (not self.is_chat_model or own is not generic_messages_to_prompt):
            return own(messages)
        native = self._renders_tools
        return Conversation(convert(messages, native), tuple(specs) if native else (), template)

    @property
    def _renders_tools(self) -> bool:
        custom = self.messages_to_prompt not in (None, generic_messages_to_prompt)
        return self.is_chat_model and not custom and self._template_has_tools

    # -- function calling --------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self, tools: Sequence[BaseTool], user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None, verbose: bool = False,
        allow_parallel_tool_calls: bool = False, tool_required: bool = False, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        return {
            "messages": messages, "tools": specs_of(tools), "tool_required": tool_required,
            "allow_parallel_tool_calls": allow_parallel_tool_calls, **kwargs,
        }  # fmt: skip

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:  # fmt: skip
        """The calls of a response; raises ValueError if there are none, unless `error_on_no_tool_call` is False, and
        `SamKVError` if one was cut off as it began."""
        calls = calls_in(response.message)
        if not calls and error_on_no_tool_call:
            cut_off = isinstance(response.raw, dict) and response.raw.get("finish_reason") == "length"
            remedy = "raise max_new_tokens" if cut_off else "pass tool_required=True, which leaves no other answer"
            begun = cut_off and OPEN.startswith((response.message.content or "").strip())
            kind = SamKVError if begun else ValueError  # of which the framework makes an empty response
            raise kind(f"The model called no function but answered: {response.message.content!r}; {remedy}.")
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=arguments_of(call.tool_kwargs) or {},
            )
            for call in calls
        ]
