"""The engine: plan -> load -> select -> recompute -> generate, in one direction; requests generate together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samkv_rag.answering import Answering, MakePlan
from samkv_rag.batch import Batch
from samkv_rag.calls import Call, short
from samkv_rag.errors import SamKVError
from samkv_rag.ingest import Progress, stored_bytes
from samkv_rag.library import Library
from samkv_rag.methods import Method, SamKV, resolve_method
from samkv_rag.model.adapter import ModelAdapter
from samkv_rag.model.loading import ModelSource
from samkv_rag.options import Count, Positive, require
from samkv_rag.parity import ParityReport, check_parity
from samkv_rag.prompt.checks import require_text, require_texts
from samkv_rag.prompt.plan import Planner, Prompt
from samkv_rag.prompt.sinks import sink_of
from samkv_rag.prompt.template import Conversation, variables
from samkv_rag.reader import BUNDLED
from samkv_rag.store import ChunkKVStore
from samkv_rag.store.forks import Renewed
from samkv_rag.stream import AnswerStream
from samkv_rag.turns import Turnstile
from samkv_rag.types import Answer, PromptPlan


class SamKVEngine:
    """Answers from chunk caches with a local Hugging Face model. Construct with `from_pretrained`; cheap and lazy."""

    def __init__(
        self, source: ModelSource, store: str | Path | ChunkKVStore, method: str | Method = "samkv",
        namespace: str = "default", min_kept_tokens: int = 0, max_batch: int = 8,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.store = store if isinstance(store, ChunkKVStore) else ChunkKVStore(store)
        self.method = resolve_method(method)
        self.namespace = require_text(namespace, "The namespace")
        self.min_kept_tokens = require(min_kept_tokens, Count, "min_kept_tokens")
        self._turn = Turnstile(require(max_batch, Positive, "max_batch"))
        self._batch = Batch(self._turn)
        self._loading = Renewed()
        self._closed = False
        self._opened_store = self.store is not store
        self.chat_template_kwargs = variables(chat_template_kwargs)
        self._library = Library(source, self.store, namespace, self._loading, self.chat_template_kwargs)

    @classmethod
    def from_pretrained(
        cls, model: Any = BUNDLED, tokenizer: Any = None, store: str | Path | ChunkKVStore = "./kv",
        method: str | Method | None = None, namespace: str = "default", device_map: Any = None, dtype: Any = "auto",
        model_kwargs: Mapping[str, Any] | None = None, min_kept_tokens: int = 0, sink_prefix: str = "head",
        kv_dtype: str = "model", max_batch: int = 8, chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> SamKVEngine:  # fmt: skip
        """An engine over `model`: "bundled", a hub id, a folder, a GGUF file, a loaded model. Nothing is loaded yet.

        `store` is a folder, ":memory:" or a `ChunkKVStore`, which its owner closes; `method` a name or a method object
        (default `SamKV()`). A method with `keep` chooses at least `min_kept_tokens` chunk tokens of a prompt: with 256,
        15 % is reached from 1,707 chunk tokens on, and `SamKV()` computes all chunks anew of a prompt with fewer.
        `sink_prefix`: what precedes chunks at ingestion (its own entries are dropped): "head", the first lines of a
        prompt of `answer`, after a BOS where prompts begin with one; "bos", a BOS token; or "none" (the paper).
        `kv_dtype` is how caches are stored: "model", "bf16", "fp16", "int8", "fp8" or "int4"; caches that are stored
        otherwise are not used. Up to `max_batch` answers are decoded together, each with its cache in memory.
        `chat_template_kwargs` are further variables of the model's chat template: `{"enable_thinking": False}` makes a
        model that thinks first (Qwen3) answer at once, as `answer` does anyway.
        Raises `SamKVError` on an unknown `sink_prefix` or `kv_dtype`, and for numbers that are none.
        """
        sink = sink_of(sink_prefix)
        source = ModelSource(model, tokenizer, device_map, dtype, dict(model_kwargs or {}), sink, kv_dtype)
        return cls(source, store, method or SamKV(), namespace, min_kept_tokens, max_batch, chat_template_kwargs)

    # -- the model and its texts -------------------------------------------------------------------------------

    def load(self) -> SamKVEngine:
        """Load model and tokenizer and index the store's texts now instead of on first use; return the engine.

        Raises `SamKVError` if the engine is closed.
        """
        self._require_open()
        with self._loading:
            _ = self.source.adapter, self._planner
        return self

    def _require_open(self) -> None:
        if self._closed:
            raise SamKVError("This engine is closed: make a new one.")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use."""
        return self.source.loaded_tokenizer

    @property
    def fingerprint(self) -> str:
        """What the caches depend on, besides their token ids."""
        return self.source.fingerprint

    @property
    def model_fingerprint(self) -> str:
        """What measurements of the model depend on, however its caches are stored: the key of `store.profiles`."""
        return self.source.model_fingerprint

    @property
    def adapter(self) -> ModelAdapter:
        """The attached model; loads it on first use."""
        with self._loading:
            return self.source.adapter

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V of one token at the cache's dtype (an 8B Llama: 131,072)."""
        return self.adapter.shape.bytes_per_token

    def stored_bytes(self, sizes: Sequence[int]) -> int:
        """About how many bytes chunks of `sizes` tokens take in the store, summaries and texts included."""
        return stored_bytes(sizes, self.adapter, self.source.kv_dtype)

    @property
    def _planner(self) -> Planner:
        self._require_open()  # it may have been closed while a request waited for its turn
        return self._library.planner

    # -- ingestion ---------------------------------------------------------------------------------------------

    def precompute(self, texts: Sequence[str], progress: bool | Progress = False) -> list[str]:
        """Store the caches of chunk texts (stripped; those without tokens are left out); return their keys in order.

        Idempotent: what is already stored costs nothing. `progress` True shows a bar; a callable receives
        (done tokens, all tokens) after every batch. Texts of fewer than 32 characters serve `answer`, which is given
        its chunks, and are not looked for in prompts. Raises `StoreFull` or `SamKVError`; what was done stays done.
        """
        chunks = self._library.chunks(texts)
        self._library.add(chunks, self._turn, progress)
        return [chunk.key for chunk in chunks]

    def keys(self, texts: Sequence[str]) -> list[str]:
        """The keys that `precompute` returns for the same texts; nothing is computed or stored."""
        return [chunk.key for chunk in self._library.chunks(texts)]

    def forget(self, keys: Sequence[str]) -> int:
        """Delete entries; return how many there were."""
        return self._library.remove(keys)

    def release(self, owner: str, keys: Iterable[str] | None = None) -> list[str]:
        """As the store's `release`; what that deletes is not looked for in prompts any more."""
        return self._library.release(owner, keys)

    def refresh(self) -> SamKVEngine:
        """Index the store's texts anew; return the engine.

        Call it when other engines or processes have stored or deleted chunks: `plan`, `generate` and `stream` look for
        the texts that were stored when this engine first indexed, or that it stored itself. `answer` needs no refresh.
        """
        self._library.refresh()
        return self

    # -- answering ---------------------------------------------------------------------------------------------

    def answer(
        self, question: str, chunks: Sequence[str], *, method: str | Method | None = None, keep: float | None = None,
        **generation: Any,
    ) -> Answer:  # fmt: skip
        """The answer to `question` from `chunks`, in the order given.

        `generation`: max_new_tokens (64), temperature, top_p, top_k, seed, stop. Chunks that are not stored are
        prefilled, reported as misses, and stored for next time before this returns; if storing fails, that is logged.
        The thoughts of a model that cannot do without them are in the answer's `thought`; give it more tokens.
        """
        return self._answer(self._asked(question, chunks), self._call(method, keep, short(generation), strip=True))

    def stream_answer(
        self, question: str, chunks: Sequence[str], *, method: str | Method | None = None, keep: float | None = None,
        timeout: float | None = None, **generation: Any,
    ) -> AnswerStream:  # fmt: skip
        """As `answer`, in pieces: iterate, then `.answer`; `.close()` cancels within one token.

        Waiting for it ends in a `TimeoutError` after `timeout` seconds. It does not wait until missed chunks are
        stored; `.join()` and the engine's `close` do.
        """
        call = self._call(method, keep, short(generation), strip=True)
        return self._stream(self._asked(question, chunks), call, timeout)

    def plan(self, prompt: Prompt, question: str | None = None) -> PromptPlan:
        """Where known chunks are in a prompt (a string or chat messages), and what its question is."""
        return self._planner.for_prompt(prompt, question)

    def generate(
        self, prompt: Prompt, question: str | None = None, *, method: str | Method | None = None,
        keep: float | None = None, **generation: Any,
    ) -> Answer:  # fmt: skip
        """The model's answer to any prompt; known chunks in it are served from their caches."""
        return self._answer(self._prompted(prompt, question), self._call(method, keep, generation))

    def stream(
        self, prompt: Prompt, question: str | None = None, *, method: str | Method | None = None,
        keep: float | None = None, timeout: float | None = None, **generation: Any,
    ) -> AnswerStream:  # fmt: skip
        """As `generate`, in pieces; waiting for it ends in a `TimeoutError` after `timeout` seconds."""
        return self._stream(self._prompted(prompt, question), self._call(method, keep, generation), timeout)

    def plan_question(self, question: str, chunks: Sequence[str]) -> PromptPlan:
        """The plan that `answer(question, chunks)` follows."""
        return self._asked(question, chunks)()

    def _asked(self, question: str, chunks: Sequence[str]) -> MakePlan:
        asked, texts = require_text(question, "The question"), require_texts(chunks, "chunks")
        return lambda: self._planner.for_question(asked, texts)

    def _prompted(self, prompt: Prompt, question: str | None) -> MakePlan:
        """What is asked, read once: a plan may be made again, and the caller's list may change or be used up."""
        own = prompt if isinstance(prompt, str) else Conversation.of(prompt)
        return lambda: self.plan(own, question)

    def _call(
        self, method: str | Method | None, keep: float | None, generation: Mapping[str, Any], strip: bool = False
    ) -> Call:
        if method is None or method == self.method.name:  # the engine's own, with its options
            method = self.method
        return Call.of(method, keep, generation, strip)

    def _stream(self, make_plan: MakePlan, call: Call, timeout: float | None = None) -> AnswerStream:
        return AnswerStream(lambda *hooks: self._answering().answer(make_plan, call, *hooks), timeout)

    def _answer(self, make_plan: MakePlan, call: Call) -> Answer:
        return self._answering().answer(make_plan, call)

    def _answering(self) -> Answering:
        self.load()
        return Answering(
            self.adapter, self.tokenizer, self.store, self._turn, self._batch, self._library, self.min_kept_tokens
        )

    # -- housekeeping ------------------------------------------------------------------------------------------

    def self_check(self) -> ParityReport:
        """Run the parity gate on THIS model: raises `ParityError` if reuse cannot be exact on it."""
        self.load()
        with self._turn:
            self.adapter.attached.refuse_changes()
            return check_parity(self.adapter)

    def close(self) -> None:
        """Stop answering, and return once the chunks that finished answers missed are stored.

        A store that this engine opened is closed; one that was passed in may serve others and is its owner's to close.
        """
        self._closed = True
        self._library.wait_until_free()
        if self._opened_store:
            self.store.close()

    def __enter__(self) -> SamKVEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
