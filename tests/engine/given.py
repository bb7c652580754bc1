"""An engine over a model that the caller has loaded."""

from __future__ import annotations

from typing import Any

from samkv_rag import SamKVEngine
from tests.models import byte_tokenizer

CHUNKS = [
    "Lumen Labs is a company in Oslo that was founded in 1987 by Ana Petrov. It makes solar lamps and kettles.",
    "The ferry to Stenness leaves on Tuesdays at nine; on other days there is a bus, which takes an hour more.",
]
ASKED = "Where is Lumen Labs based?"


def engine_of(model: Any, store: Any = ":memory:", **options: Any) -> SamKVEngine:
    """An engine over `model`, with a byte tokenizer."""
    return SamKVEngine.from_pretrained(model, byte_tokenizer(), store, **options)
