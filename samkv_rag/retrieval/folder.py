"""Ingest a folder into the store and the index: only what changed, K/V first, the index last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llama_index.core.schema import BaseNode

from samkv_rag.retrieval import generations
from samkv_rag.retrieval.embedding import OFFLINE
from samkv_rag.retrieval.errors import EmptyFile, RetrievalError, UnreadableFile
from samkv_rag.retrieval.index import ChunkIndex, Entry, Settings
from samkv_rag.retrieval.loading import (
    SourceFile,
    Tokenize,
    find_files,
    fingerprint,
    is_gone,
    is_hidden,
    load,
    place,
    split,
)

BATCH = 16
KEPT = "; its earlier text is still used"
LINKED = "a link to a folder, which is not followed; ingest the folder that it leads to"


class Store(Protocol):
    """What ingestion needs from the KV store: an owner keeps a key alive."""

    def __contains__(self, key: object) -> bool: ...
    def retain(self, key: str, owner: str) -> Any: ...


class Engine(Protocol):
    """What ingestion needs from the engine, through which an owner releases what it kept alive."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def store(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...
    def stored_bytes(self, sizes: Sequence[int]) -> int: ...
    def precompute(self, texts: Sequence[str], progress: Any = False) -> Sequence[str]: ...
    def release(self, owner: str, keys: Iterable[str] | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Split:
    """A changed file and its chunks; `sizes` are their token counts."""

    source: SourceFile
    nodes: list[BaseNode]
    sizes: list[int]

    @property
    def texts(self) -> list[str]:
        return [node.get_content().strip() for node in self.nodes]


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What an ingestion is about to compute, reported before it starts. A text that comes up in several `chunks` is
    computed, and counted in `tokens` and `kv_bytes`, once."""

    files: int
    chunks: int
    tokens: int
    kv_bytes: int


@dataclass(slots=True)
class IngestReport:
    """What an ingestion did. `failed` maps unreadable files to the reason, which says so where their earlier chunks are
    kept; a file that has no text any more is in `removed`, too. `chunks` are those of new and changed files, `tokens`
    those that the model had to compute for them."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    tokens: int = 0
    total_chunks: int = 0
    seconds: float = 0.0


def ingest_folder(
    engine: Engine,
    path: Path,
    root: Path,
    *,
    model: str = "bundled",
    chunk_size: int = 128,
    embed: str = OFFLINE,
    kv_dtype: str = "model",
    on_plan: Callable[[IngestPlan], None] = lambda plan: None,
    on_progress: Callable[[int, int], None] = lambda chunks, tokens: None,
    on_wait: Callable[[], None] = lambda: None,
) -> IngestReport:
    """Bring the index under `root` and the engine's store up to date with `path`, a folder or a file.

    If killed at any point, the next call resumes: K/V that is in the store is not computed again, and the index
    changes in one step at the end. Only one process at a time ingests into `root`; others wait for it.
    `on_progress` is given the chunks and tokens of every finished batch, `on_wait` is called before waiting.
    """
    started = time.perf_counter()
    settings = Settings(model, engine.fingerprint, chunk_size, embed, kv_dtype=kv_dtype)
    with generations.write_lock(root, on_wait):
        job = _Job(engine, path, _open(root, settings), settings)
        report = job.run(on_plan, on_progress)
    report.seconds = time.perf_counter() - started
    return report


def _open(root: Path, settings: Settings) -> ChunkIndex:
    return ChunkIndex.create(root, settings) if generations.current(root) is None else ChunkIndex.open(root)


class _Job:
    """One ingestion, under the lock."""

    def __init__(self, engine: Engine, path: Path, index: ChunkIndex, settings: Settings) -> None:
        self.engine, self.path, self.index, self.settings = engine, path, index, settings
        self.store: Store = engine.store
        self.base, self.claim = place(path), f"ingest:{index.root.resolve()}"
        self.report = IngestReport()
        self.anew = index.manifest.settings != settings
        # Opened before anything is computed: it takes the package of its embedding.
        self.next = ChunkIndex.create(index.root, settings) if self.anew else index
        self.found: set[Path] = set()
        self.unlisted: set[Path] = set()
        self.emptied: set[Path] = set()

    def run(self, on_plan: Callable[[IngestPlan], None], on_progress: Callable[[int, int], None]) -> IngestReport:
        """Bring the index up to date with the folder: caches first, then the index; then release what is unused."""
        sources = list(self._sources())
        self._release_stale()  # from an earlier run that died between the index and the release
        splits = list(self._split(self._sort(sources)))
        gone = self._gone()
        self._tell_kept(gone)
        if splits:
            on_plan(self._plan(splits))
        keys = self._precompute(splits, on_progress)
        if splits or gone or self.anew:
            self._commit(splits, keys, gone)
        self.engine.release(self.claim)  # with what an interrupted run computed of files that are no longer so
        self.report.total_chunks = sum(len(entry.nodes) for entry in self.index.documents.values())
        return self.report

    def _sources(self) -> Iterator[SourceFile]:
        paths = find_files(self.path, self._cannot_list, lambda folder: self._fail(str(folder), LINKED))
        self.found.update(paths)
        if self.anew:  # the files of other folders too: one index has one model
            paths += [p for p in map(Path, self.index.documents) if p not in self.found and not self._is_gone(p)]
        for path in paths:
            try:
                yield fingerprint(path)
            except UnreadableFile as error:
                self._fail(str(path), str(error))

    def _cannot_list(self, error: OSError) -> None:
        self.unlisted.add(Path(error.filename))
        self._fail(str(error.filename), error.strerror or str(error))

    def _sort(self, sources: list[SourceFile]) -> list[SourceFile]:
        """The files whose chunks are to be computed: new, changed, or with entries that the store has lost."""
        todo = []
        for source in sources:
            name, known = str(source.path), self.index.documents.get(str(source.path))
            same = known is not None and known.digest == source.digest and not self.anew
            if same and known is not None and all(key in self.store for key in known.keys):
                self.report.unchanged.append(name)
            else:
                (self.report.changed if known else self.report.added).append(name)
                todo.append(source)
        return todo

    def _split(self, sources: list[SourceFile]) -> Iterator[Split]:
        tokenize = _tokenize(self.engine.tokenizer) if sources else None
        for source in sources:
            assert tokenize is not None
            try:
                nodes = split(source, load(source), tokenize, self.settings.chunk_size)
            except UnreadableFile as error:
                self._fail(str(source.path), str(error))
                if isinstance(error, EmptyFile):
                    self.emptied.add(source.path)
            else:
                yield Split(source, nodes, [len(tokenize(node.get_content().strip())) for node in nodes])

    def _fail(self, name: str, reason: str) -> None:
        for group in (self.report.added, self.report.changed):
            if name in group:
                group.remove(name)
        self.report.failed[name.encode("utf-8", "replace").decode()] = reason  # a name may be no text

    def _gone(self) -> list[str]:
        """Indexed files under the path that are no longer found in it, or have no text any more."""
        inside = [p for p in map(Path, self.index.documents) if self.anew or self._is_inside(p)]
        self.report.removed = [str(p) for p in inside if p in self.emptied or self._is_gone(p)]
        return self.report.removed

    def _tell_kept(self, gone: list[str]) -> None:
        """Add to the reasons of unreadable files that their earlier chunks stay, where they do."""
        if not self.anew:  # else nothing of the old index stays
            for name in self.report.failed.keys() & self.index.documents.keys() - set(gone):
                self.report.failed[name] += KEPT

    def _is_inside(self, path: Path) -> bool:
        return path == self.base or self.base in path.parents

    def _is_gone(self, path: Path) -> bool:
        """Whether nothing is there, or it is no longer found, as what a link to a folder has taken the place of. What
        the walk cannot find (hidden files, ingested by name, and folders that cannot be read) stays."""
        if is_gone(path):
            return True
        missed = self._is_inside(path) and path not in self.found and not is_hidden(path, self.base)
        return missed and self.unlisted.isdisjoint(path.parents)

    def _plan(self, splits: list[Split]) -> IngestPlan:
        once = {text: size for part in splits for text, size in zip(part.texts, part.sizes, strict=True)}
        chunks, sizes = sum(len(part.nodes) for part in splits), list(once.values())
        return IngestPlan(len(splits), chunks, sum(sizes), self.engine.stored_bytes(sizes))

    def _precompute(self, splits: list[Split], on_progress: Callable[[int, int], None]) -> list[tuple[str, ...]]:
        """Store keys, file by file; every batch is durable before the next begins."""
        texts = [text for part in splits for text in part.texts]
        sizes = [size for part in splits for size in part.sizes]
        keys: list[str] = []
        for start in range(0, len(texts), BATCH):
            computed = [0]
            keys += self.engine.precompute(
                texts[start : start + BATCH], progress=lambda done, _, told=computed: told.append(done)
            )
            for key in keys[start:]:  # held until the index names them
                self.store.retain(key, self.claim)
            batch = sizes[start : start + BATCH]
            self.report.chunks += len(batch)
            self.report.tokens += computed[-1]  # fewer than the batch has, if an earlier run was cut short
            on_progress(len(batch), sum(batch))
        found = iter(keys)
        return [tuple(next(found) for _ in part.nodes) for part in splits]

    def _commit(self, splits: list[Split], keys: list[tuple[str, ...]], gone: list[str]) -> None:
        before = {path: entry.keys for path, entry in self.index.documents.items()}
        new: dict[str, tuple[Entry, list[BaseNode]]] = {}
        for part, part_keys in zip(splits, keys, strict=True):
            ids = tuple(node.node_id for node in part.nodes)
            new[str(part.source.path)] = Entry(part.source.digest, ids, part_keys, sum(part.sizes)), part.nodes
        self.index = self.next
        self.index.update(gone, new)
        for name, (entry, _) in new.items():
            for key in entry.keys:
                self.store.retain(key, owner(name))
        self.index.manifest.stale = _stale(before, self.index)
        self.index.save()
        self._release_stale()

    def _release_stale(self) -> None:
        """Release K/V that the current index no longer names, and forget what no other file holds."""
        for name, keys in self.index.manifest.stale.items():
            self.engine.release(owner(name), keys)


def owner(path: str) -> str:
    """The name under which a file holds its chunks in the store."""
    return f"file:{path}"


def _stale(before: dict[str, tuple[str, ...]], index: ChunkIndex) -> dict[str, list[str]]:
    held = {path: set(entry.keys) for path, entry in index.documents.items()}
    lost = {path: sorted(set(keys) - held.get(path, set())) for path, keys in before.items()}
    return {path: keys for path, keys in lost.items() if keys}


def _tokenize(tokenizer: Any) -> Tokenize:
    if tokenizer is None:
        raise RetrievalError("The engine has no tokenizer; give it a model with one.")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return encode
