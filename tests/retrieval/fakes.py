"""An engine and a store without a model: a key is a digest of the text, an answer is looked up."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

TOKEN = re.compile(r"\s?\w{1,4}|\s?[^\w\s]|\s")


def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
    """About as many tokens as a small byte-level BPE would make."""
    return {"input_ids": [len(piece) for piece in TOKEN.findall(text)]}


def key_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class FakeStore:
    """Entries and owners as empty files, so that several processes can share them."""

    def __init__(self, root: Path) -> None:
        self.entries, self.owners = root / "entries", root / "owners"
        self.entries.mkdir(parents=True, exist_ok=True)
        self.owners.mkdir(exist_ok=True)

    def require_writable(self) -> None:
        pass

    def put(self, key: str) -> None:
        (self.entries / key).touch()

    def __contains__(self, key: object) -> bool:
        return (self.entries / str(key)).exists()

    def __len__(self) -> int:
        return len(list(self.entries.iterdir()))

    def _claim(self, key: str, owner: str) -> Path:
        return self.owners / f"{key}--{key_of(owner)}"

    def retain(self, key: str, owner: str) -> None:
        self._claim(key, owner).touch()

    def release(self, owner: str, keys: Iterable[str] | None = None) -> list[str]:
        if keys is None:
            keys = [claim.name.partition("--")[0] for claim in self.owners.glob(f"*--{key_of(owner)}")]
        held = [key for key in keys if self._claim(key, owner).exists()]
        for key in held:
            self._claim(key, owner).unlink()
        return [key for key in held if not list(self.owners.glob(f"{key}--*"))]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self.entries / key).unlink(missing_ok=True)


def make_report(**known: Any) -> Any:
    """A report with these figures, and 0 for the others."""
    from samkv_rag.types import Report

    required = [f.name for f in fields(Report) if f.default is MISSING and f.default_factory is MISSING]
    return Report(**{**dict.fromkeys(required, 0), **known})


@dataclass
class FakeEngine:
    """Counts what it is asked to do."""

    root: Path
    fingerprint: str = "fake"
    precomputed: list[str] = field(default_factory=list)
    tokenized: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FakeStore(self.root)

    @property
    def tokenizer(self) -> Any:
        self.tokenized += 1
        return tokenizer

    def stored_bytes(self, sizes: Sequence[int]) -> int:
        return 1024 * sum(sizes)

    def precompute(self, texts: Sequence[str], progress: Any = False) -> list[str]:
        fresh = [text for text in texts if key_of(text) not in self.store]
        self.precomputed += fresh
        for text in fresh:
            self.store.put(key_of(text))
        if fresh and callable(progress):
            total = sum(len(tokenizer(text)["input_ids"]) for text in fresh)
            progress(total, total)
        return [key_of(text) for text in texts]

    def release(self, owner: str, keys: Iterable[str] | None = None) -> None:
        self.store.delete(self.store.release(owner, keys))

    def answer(self, question: str, chunks: Sequence[str], **options: Any) -> Any:
        from samkv_rag.types import Answer, Usage

        self.asked.append({"question": question, "chunks": list(chunks), **options})
        sizes = [len(tokenizer(chunk)["input_ids"]) for chunk in chunks]
        total, method = sum(sizes), options.get("method", "samkv")
        kept = int(total * (options.get("keep") or 0.15)) if method == "samkv" else total
        fresh = 0 if method == "reuse" else kept
        report = make_report(
            method=method,
            prompt_tokens=total + 20,
            glue_tokens=20,
            chunk_tokens=total,
            dropped_tokens=total - kept,
            kept_tokens=kept,
            reused_tokens=kept - fresh,
            recomputed_tokens=fresh,
            fresh_tokens=fresh + 20,
            question_pass_tokens=0,
            kept_ratio=kept / max(total, 1),
            recompute_ratio=fresh / max(kept, 1),
            kv_bytes_resident=(kept + 20) * 1024,
            kv_bytes_full=(total + 20) * 1024,
            kv_bytes_read=kept * 1024,
            ttft_seconds=0.001 * (fresh + 1),
            stage_seconds={"plan": 0.0},
        )
        text = self.answers.get(question, "not in the passages")
        return Answer(text, Usage(total + 20, 3, total - fresh), report)

    def stream_answer(self, question: str, chunks: Sequence[str], **options: Any) -> FakeStream:
        return FakeStream(self.answer(question, chunks, **options))

    def close(self) -> None:
        pass


@dataclass
class FakeStream:
    answer: Any
    closed: bool = False

    def __iter__(self) -> Iterator[str]:
        yield from re.findall(r"\S+\s*", self.answer.text)

    def close(self) -> None:
        self.closed = True
