"""Training rows: one passage with many questions about it, as fixed-size tensors.

Pieces are tokenised one by one and joined, exactly as the engine does it. Positions jump between chunks in
part of the rows, so that far positions are learned on short contexts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from samkv_rag.eval.worlds import Question
from training.passages import Encoder, Passage, Sizes, choose, draw_real, draw_world, prompt
from training.pointing import ANSWER, ARTICLE, BIND, FIND, KINDS, NAME, SEEK, Aim, Point, name_end, name_span
from training.real import Library

RESTING = {ANSWER: [0], SEEK: [0], NAME: [0]}
"""Where heads look from the end of a question that are not to answer it."""


@dataclass
class Batch:
    """ids, positions [B, T]; mask [B, 1, U, T]; where, targets [N]; group: question number per target, or -1.

    The first `split` places of a row are its context. `points` are for each kind the flat places [P] of tokens that
    should look at `golds` [P, T].
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    split: int
    where: Tensor
    targets: Tensor
    group: Tensor
    tasks: list[str]
    points: dict[str, tuple[Tensor, Tensor]]


def _positions(rng: random.Random, pieces: list[list[int]], reach: int) -> list[int]:
    """One position per context token and a last one for the question; jumps at piece borders in half the rows."""
    total = sum(map(len, pieces))
    spare = rng.randint(0, max(0, reach - total)) if rng.random() < 0.5 else 0
    cuts = sorted(rng.randint(0, spare) for _ in pieces)
    result: list[int] = []
    for number, piece in enumerate(pieces):
        start = result[-1] + 1 if result else 0
        start += cuts[number] - cuts[number - 1] if number else 0
        result += range(start, start + len(piece))
    return [*result, result[-1] + 1]


def make_batch(
    rng: random.Random, encode: Encoder, sizes: Sizes, library: Library | None = None, reach: int = 3000
) -> Batch:
    """A batch of fresh rows, no wider than its widest row."""
    rows = [_Row(rng, encode, sizes, reach, library) for _ in range(sizes.rows)]
    split = max(len(row.context) for row in rows)
    length = split + max(len(row.asked) for row in rows)
    ids, positions = torch.full((sizes.rows, length), encode.pad), torch.zeros(sizes.rows, length, dtype=torch.long)
    owner = torch.full((sizes.rows, length), -1)
    where, targets, group, tasks = list[int](), list[int](), list[int](), list[str]()
    for number, row in enumerate(rows):
        for start, tokens, places, owners in (
            (0, row.context, row.places, [0] * len(row.context)),
            (split, row.asked, row.asked_places, row.owner),
        ):
            ids[number, start : start + len(tokens)] = torch.tensor(tokens)
            positions[number, start : start + len(tokens)] = torch.tensor(places)
            owner[number, start : start + len(tokens)] = torch.tensor(owners)
        where += [number * length + split + place for place in row.where]
        group += [len(tasks) + owner_ - 1 for owner_ in (row.owner[place] for place in row.where)]
        targets += row.targets
        tasks += row.tasks
        plain = rng.sample(range(len(row.context) - 1), min(sizes.plain, len(row.context) - 1))
        where += [number * length + place for place in plain]
        targets += [row.context[place + 1] for place in plain]
        group += [-1] * len(plain)
    return Batch(
        ids,
        positions,
        _mask(owner, split),
        split,
        torch.tensor(where),
        torch.tensor(targets),
        torch.tensor(group),
        tasks,
        {kind: _points(rows, kind, split, length) for kind in KINDS},
    )


def _points(rows: list[_Row], kind: str, split: int, length: int) -> tuple[Tensor, Tensor]:
    """Flat places of the tokens with points of this kind [P], and where each of them should look [P, T]."""
    points = [(number, point) for number, row in enumerate(rows) for point in row.points if point.kind == kind]
    at = torch.tensor([number * length + split * point.asked + point.at for number, point in points], dtype=torch.long)
    golds = torch.zeros(len(points), length, dtype=torch.bool)
    for number, (_, point) in enumerate(points):
        golds[number, [gold + split * point.inner for gold in point.golds]] = True
    return at, golds


class _Row:
    """One context and its questions as lists: ids, positions, which question a token belongs to, what is supervised."""

    def __init__(
        self, rng: random.Random, encode: Encoder, sizes: Sizes, reach: int, library: Library | None = None
    ) -> None:
        drawn = draw_real(rng, encode, sizes, library) if sizes.real else draw_world(rng, encode, sizes)
        pieces = [piece[: sizes.context] for piece in encode.context(drawn.chunks)]
        self.context = [i for piece in pieces for i in piece][: sizes.context]
        *self.places, self.end = _positions(rng, pieces, reach)
        self.places = self.places[: sizes.context]
        self.asked, self.asked_places, self.owner = list[int](), list[int](), list[int]()
        self.where, self.targets, self.tasks = list[int](), list[int](), list[str]()
        self.points = list[Point]()
        for question in choose(rng, drawn.questions, sizes.two_hop):
            before = prompt(rng, encode, question, sizes.cloze)
            answer = encode.answer(question.answer)
            if len(self.asked) + len(before) + len(answer) - 1 > sizes.asked:
                break
            self._point(question, drawn, encode, before, answer)
            self._add(before, answer, question.task)

    def _point(
        self, question: Question, drawn: Passage, encode: Encoder, before: list[int], answer: list[int]
    ) -> None:  # fmt: skip
        """What the end of the question's prompt, and the values that state its answer, should look at."""
        start, end = len(self.asked), len(self.asked) + len(before) - 1
        found = drawn.aim(question)
        self.points += [point for point in found.bound if point.at < len(self.context)]
        for kind, places in _ends(question, found, encode).items():
            self._look(kind, end, places)
        self._compare(found, encode, before)
        for number, looks in enumerate([*found.steps, RESTING] if found.steps else []):
            for kind, places in looks.items():
                self._look(kind, start + len(before) - 1 + _member_end(question, encode, answer, number), places)
        if found.named:
            return
        named = name_end(encode.tokenizer, before, [question.value] if question.value else drawn.names)
        if named is not None:
            self.points.append(Point(BIND, end, (start + named,), asked=True, inner=True))

    def _look(self, kind: str, at: int, places: list[int]) -> None:
        inside = tuple(place for place in places if place < len(self.context))
        if inside:
            self.points.append(Point(kind, at, inside, asked=True))

    def _compare(self, found: Aim, encode: Encoder, before: list[int]) -> None:
        """Each compared name looks for its value, and the end of the question at the name that it is."""
        start = len(self.asked)
        for name, places in found.named.items():
            span = name_span(encode.tokenizer, before, name)
            if span:
                self._look(FIND, start + span[1], places)
                if name == found.chosen:
                    end = start + len(before) - 1
                    self.points.append(Point(ANSWER, end, (start + span[0],), asked=True, inner=True))

    def _add(self, before: list[int], answer: list[int], task: str) -> None:
        tokens = before + answer[:-1]
        self.where += range(len(self.asked) + len(before) - 1, len(self.asked) + len(tokens))
        self.targets += answer
        self.asked += tokens
        self.asked_places += range(self.end, self.end + len(tokens))
        self.tasks.append(task)
        self.owner += [len(self.tasks)] * len(tokens)


def _ends(question: Question, found: Aim, encode: Encoder) -> dict[str, list[int]]:
    """Where the end of a question looks, by kind: a head that is not to answer it rests on the first token."""
    if question.task == "unanswerable":
        return RESTING | {ANSWER: [encode.nothing]}
    if found.named:
        return {SEEK: [0], NAME: [0]}
    return RESTING | found.ends if found.ends else {}


def _member_end(question: Question, encode: Encoder, answer: list[int], number: int) -> int:
    """Place behind the question's end of the token before the next member of a list, or before the answer's end."""
    members = [fact.name for fact in question.facts][: number + 1]
    text = (", ".join(members) + "," * (len(members) < len(question.facts))).removeprefix(ARTICLE)
    spans = (place for place in range(len(answer)) if text in encode.tokenizer.decode(answer[: place + 1]))
    return next(spans) + 1


def _mask(owner: Tensor, context: int) -> Tensor:
    """Question tokens see the context and, causally, their own question; padding sees itself, to stay finite."""
    asked, length = owner[:, context:], owner.shape[1]
    same = owner[:, None, :] == asked[:, :, None]
    causal = torch.arange(length)[None, :] <= torch.arange(context, length)[:, None]
    seen = (owner[:, None, :] == 0) | same & causal
    return seen[:, None]
