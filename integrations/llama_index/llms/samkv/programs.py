"""Objects of a Pydantic class that are made piece by piece, through a call that the model is made to write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode

from llama_index.llms.samkv.calling import SamKVCalling

_BY_CALLS = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)


class SamKVPrograms(SamKVCalling):
    """Streams structured answers. The framework demands a call only where it does not stream."""

    def _structured_stream_call(
        self, output_cls: type[Any], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:  # fmt: skip
        program = self._program(output_cls, prompt)
        return program.stream_call(llm_kwargs=llm_kwargs, **prompt_args)  # type: ignore[return-value]

    async def _structured_astream_call(
        self, output_cls: type[Any], prompt: PromptTemplate, llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        program = self._program(output_cls, prompt)
        return await program.astream_call(llm_kwargs=llm_kwargs, **prompt_args)  # type: ignore[return-value]

    def _program(self, output_cls: type[Any], prompt: PromptTemplate) -> BasePydanticProgram[Any]:
        from llama_index.core.program.utils import get_program_for_llm  # it imports LLMs itself

        mode = self.pydantic_program_mode
        forced = {"tool_choice": "any"} if self.is_function_calling_model and mode in _BY_CALLS else {}
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode, **forced)
