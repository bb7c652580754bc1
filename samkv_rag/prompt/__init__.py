"""The prompt floor: where known chunks stand in a prompt, and what the question is. Knows no model."""

from samkv_rag.prompt.matcher import Matcher, Span

__all__ = ["Matcher", "Span"]
