"""The prompt layer: where known chunks are in a prompt, and what the question is. Independent of any model."""

from samkv_rag.prompt.matcher import Matcher, Span

__all__ = ["Matcher", "Span"]
