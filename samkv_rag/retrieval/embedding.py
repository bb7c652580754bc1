"""Embeddings that need no download: hashed words and character n-grams, weighted by how rare they are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from samkv_rag.retrieval.errors import RetrievalError

OFFLINE = "hashing"
WORD_FEATURES = 3072
CHAR_FEATURES = 1024
CHAR_WEIGHT = 0.3
Vector = NDArray[np.float32]


class HashingEmbedding(BaseEmbedding):
    """Bag of words and character n-grams, feature-hashed to a dense unit vector.

    Chunks are embedded without any corpus statistics, so adding and removing documents never changes a stored
    vector. Rarity counts on the question's side instead: `fit` counts in how many stored vectors a feature occurs,
    and a question's features are weighted by the square of the resulting idf (`lnc.ltt` in SMART notation,
    with both idf factors on the query).
    """

    _words: Any = PrivateAttr()
    _chars: Any = PrivateAttr()
    _weight: Vector | None = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        super().__init__(model_name=OFFLINE, **fields)
        shared = {"norm": None, "lowercase": True, "strip_accents": "unicode"}
        self._words = HashingVectorizer(
            n_features=WORD_FEATURES, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **shared
        )
        self._chars = HashingVectorizer(n_features=CHAR_FEATURES, analyzer="char_wb", ngram_range=(4, 4), **shared)

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return WORD_FEATURES + CHAR_FEATURES

    def fit(self, vectors: Vector) -> None:
        """Learn how rare each feature is from all stored chunk vectors."""
        in_chunks = np.count_nonzero(vectors, axis=0)
        self._weight = np.log1p(len(vectors) / (1.0 + in_chunks)).astype(np.float32) ** 2

    def _embed(self, text: str) -> Vector:
        parts = [(self._words, 1.0), (self._chars, CHAR_WEIGHT)]
        counts = np.concatenate([v.transform([text]).toarray()[0] * w for v, w in parts]).astype(np.float32)
        return np.sign(counts) * np.log1p(np.abs(counts))

    def _get_text_embedding(self, text: str) -> list[float]:
        return _unit(self._embed(text))

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self._embed(query)
        return _unit(vector if self._weight is None else vector * self._weight)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def _unit(vector: Vector) -> list[float]:
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).tolist()  # type: ignore[no-any-return]


def open_embedding(name: str) -> BaseEmbedding:
    """The offline embedding for "hashing", else the sentence-transformers model of that name."""
    if name == OFFLINE:
        return HashingEmbedding()
    try:
        installed = find_spec("llama_index.embeddings.huggingface") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise RetrievalError(
            f"--embed-model {name} needs sentence-transformers: pip install llama-index-embeddings-huggingface"
        )
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    try:
        model: BaseEmbedding = HuggingFaceEmbedding(model_name=name)
    except Exception as error:  # the hub, the disk and torch each raise their own
        raise RetrievalError(f"The embedding model {name} cannot be loaded: {error}") from error
    return model
