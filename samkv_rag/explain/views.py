"""One question under several methods, made visible: `explain` answers it and shows what became of every block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from samkv_rag.engine import SamKVEngine
from samkv_rag.errors import SamKVError
from samkv_rag.eval.settings import parse, written
from samkv_rag.explain.recording import Recording
from samkv_rag.methods import Method
from samkv_rag.prompt.encoding import Encoder
from samkv_rag.types import BLOCK, Answer, Segment, Selection

METHODS = ("samkv", "full")
State = Literal["anchor", "selected", "kept", "packed", "dropped"]
Fate = tuple[State, bool]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one block with the same fate: `text`, where they are, and the score of their block.

    `state` is "kept" where the method does not rank blocks, and "packed" for what is held in four bits. `recomputed` is
    also true of what was recomputed for others to attend to, and then dropped.
    """

    block: int
    start: int
    tokens: int
    text: str
    state: State
    recomputed: bool
    score: float | None


@dataclass(frozen=True, slots=True)
class ChunkView:
    """One retrieved chunk in prompt order, as parts that together are its text."""

    number: int
    parts: tuple[Part, ...]

    def tokens(self, *states: State) -> int:
        """Tokens of the chunk in these states, or all."""
        return sum(part.tokens for part in self.parts if not states or part.state in states)


@dataclass(frozen=True, slots=True)
class MethodView:
    """What one method answered and cost, and what it did with the chunks."""

    label: str
    answer: Answer
    chunks: tuple[ChunkView, ...]

    @property
    def uniform(self) -> bool:
        """Whether every token of every chunk shared one fate: then there is little to look at."""
        return len({(part.state, part.recomputed) for chunk in self.chunks for part in chunk.parts}) <= 1

    @property
    def tokens(self) -> Counter[str]:
        """Chunk tokens by state, and how many of them were recomputed ("recomputed") and reused ("reused")."""
        counts: Counter[str] = Counter()
        for part in (part for chunk in self.chunks for part in chunk.parts):
            counts[part.state] += part.tokens
            if part.recomputed or part.state != "dropped":
                counts["recomputed" if part.recomputed else "reused"] += part.tokens
        return counts


@dataclass(frozen=True, slots=True)
class Explanation:
    """A question and what the methods made of it. `html` is one self-contained page; notebooks show it in place."""

    question: str
    model: str
    methods: tuple[MethodView, ...]

    @property
    def html(self) -> str:
        """The whole page; it holds no script and loads nothing from outside itself."""
        from samkv_rag.explain.page import render

        return render(self)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns where it is."""
        file = Path(path)
        file.write_text(self.html, encoding="utf-8", errors="replace")
        return file

    def _repr_html_(self) -> str:
        from samkv_rag.explain.page import frame

        return frame(self.html)


def explain(
    engine: SamKVEngine, question: str, chunks: Sequence[str], methods: Sequence[str | Method] = METHODS,
    keep: float | None = None, **generation: Any,
) -> Explanation:  # fmt: skip
    """Answer `question` from `chunks` by each of `methods` and show what each kept and recomputed.

    A method is an object or a line such as "samkv:look=bound,keep=0.3". `keep` is set in those that have one and whose
    line does not set it. Chunks that are not stored yet are computed first. Raises `SamKVError` as `answer` does.
    """
    if not methods:
        raise SamKVError("There is no method to explain; name one or more, for example methods=['samkv', 'full'].")
    named = [_resolved(method, keep) for method in methods]
    engine.precompute(chunks)
    views = tuple(_view(engine, question, chunks, label, method, generation) for label, method in named)
    return Explanation(question, engine.source.name, views)


def _resolved(method: str | Method, keep: float | None) -> tuple[str, Method]:
    made, given = parse(method) if isinstance(method, str) else (method, {"keep": None})
    label = method if isinstance(method, str) else written(made)
    if keep is None or "keep" in given or not is_dataclass(made) or "keep" not in {f.name for f in fields(made)}:
        return label, made
    return label, replace(made, keep=keep)


def _view(
    engine: SamKVEngine, question: str, chunks: Sequence[str], label: str, method: Method, generation: dict[str, Any]
) -> MethodView:
    recording = Recording(method)
    answer = engine.answer(question, chunks, method=recording, **generation)
    if not recording.last:
        return MethodView(label, answer, ())
    plan, selection = recording.last[0][0], recording.selection
    encoder = Encoder(engine.tokenizer)
    seen = tuple(
        ChunkView(index + 1, tuple(_parts(encoder, chunk, selection, index))) for index, chunk in enumerate(plan.chunks)
    )
    return MethodView(label, answer, seen)


def _parts(encoder: Encoder, chunk: Segment, selection: Selection, index: int) -> Iterator[Part]:
    """The chunk's tokens, cut where a block ends or the fate changes; blocks of one token with one score are joined."""
    texts = encoder.chunk_texts(chunk.text)[: len(chunk.token_ids)]
    fates = _fates(len(chunk.token_ids), selection, index)
    ranking = selection.ranking
    block = BLOCK if ranking is None else ranking.block
    scores = [None] * len(fates) if ranking is None else ranking.scores[index].tolist()
    same = [(fate, at // block if block > 1 else scores[at]) for at, fate in enumerate(fates)]
    start = 0
    for stop in range(1, len(fates) + 1):
        if stop == len(fates) or same[stop] != same[start]:
            (state, recomputed), score = fates[start], scores[start]
            yield Part(start // block, start, stop - start, "".join(texts[start:stop]), state, recomputed, score)
            start = stop


def _fates(tokens: int, selection: Selection, index: int) -> list[Fate]:
    ranking, kept = selection.ranking, _as_set(selection.kept[index])
    anchors = set[int]() if ranking is None else _as_set(ranking.anchors[index])
    again, chosen = _as_set(selection.recomputed[index]), "kept" if ranking is None else "selected"
    packed = _as_set(selection.packed[index]) if selection.packed else set[int]()

    def fate(token: int) -> Fate:
        if token not in kept:
            return "dropped", token in again
        if token in packed:
            return "packed", token in again
        return ("anchor" if token in anchors else chosen), token in again  # type: ignore[return-value]

    return [fate(token) for token in range(tokens)]


def _as_set(indices: Tensor) -> set[int]:
    return set(indices.tolist())
