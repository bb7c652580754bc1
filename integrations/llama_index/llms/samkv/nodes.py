"""Which text of a node is cached: the one that will be in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from samkv_rag.prompt.matcher import MIN_CHARS

ModeName = Literal["none", "llm"]
Cacheable = Sequence[BaseNode | NodeWithScore | str]


def text_of_node(node: BaseNode, metadata_mode: ModeName = "none", metadata_key: str | None = None) -> str:
    """The text to cache, stripped as synthesizers strip it; empty if it is not worth caching.

    `metadata_mode` "none" is the body, which is in prompts below any metadata header; "llm" is header and body.
    `metadata_key` names metadata that replaces the body in prompts (SentenceWindow: "window").
    """
    if metadata_key is not None:
        text = str(node.metadata.get(metadata_key, ""))
    else:
        text = node.get_content(metadata_mode=MetadataMode(metadata_mode))
    stripped = text.strip()
    return stripped if len(stripped) >= MIN_CHARS else ""


def texts_of(items: Cacheable, metadata_mode: ModeName = "none", metadata_key: str | None = None) -> list[str]:
    """The texts of nodes, scored nodes and plain texts, without the empty ones; a plain text is only stripped."""
    if isinstance(items, str):
        items = [items]
    found = []
    for item in items:
        if isinstance(item, str):
            found.append(item.strip())
        else:
            node = item.node if isinstance(item, NodeWithScore) else item
            found.append(text_of_node(node, metadata_mode, metadata_key))
    return [text for text in found if text]
