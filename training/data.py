"""Training rows: one passage with many questions about it, as fixed-size tensors.

Pieces are tokenised one by one and joined, exactly as the engine does. Positions jump between chunks in some of the
rows, so that distant positions are learned from short contexts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samkv_rag.eval.worlds import Question
from training.passages import Encoder, Passage, Sizes, choose, draw_real, draw_world, prompt
from training.pointing import ANSWER, ARTICLE, BIND, FIND, KINDS, NAME, SEEK, Aim, Point, name_end, name_span
from training.real import Library
from training.shelf import DRAWN, Shelf

RESTING = {ANSWER: [0], SEEK: [0], NAME: [0]}
"""What heads that are not to answer a question attend to from its end."""
ROOM = 64  # points of a kind in a row, at most
PLAIN = -1  # the group of targets that are context tokens


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU fetches it from pinned memory while it works on."""
    return part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device)


@dataclass(frozen=True)
class Points:
    """Places `at` [B, P] in the rows of a batch, which of them are `meant` [B, P], and what each should attend to in a
    row of `length`: `spots` [3, M], the row, the number of the place in it, and what that attends to."""

    at: Tensor
    meant: Tensor
    spots: Tensor
    length: int

    @property
    def golds(self) -> Tensor:
        """What each place should attend to [B, P, T]."""
        found = torch.zeros(*self.at.shape, self.length, dtype=torch.bool, device=self.at.device)
        return found.index_put(tuple(self.spots), torch.ones((), dtype=torch.bool, device=self.at.device))

    def flat(self) -> tuple[Tensor, Tensor]:
        """The meant places, counted over all tokens of the batch [P], and the golds of each [P, T]."""
        rows = torch.arange(len(self.at))[:, None] * self.length
        return (rows + self.at)[self.meant], self.golds[self.meant]

    def to(self, device: torch.device) -> Points:
        """The same on another device."""
        return Points(*(_moved(part, device) for part in (self.at, self.meant, self.spots)), self.length)


@dataclass(frozen=True)
class Batch:
    """ids, positions, owner [B, T]; where, targets [N]; group: question number per target, or `PLAIN`.

    The first `split` places of a row are its context. `owner`: what a token belongs to, 0 the context, 1.. a question
    of the row, -1 neither. `points`: by kind, the tokens that should attend to others; `pointed`: which kinds have any.
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    split: int
    where: Tensor
    targets: Tensor
    group: Tensor
    tasks: list[str]
    points: dict[str, Points]
    pointed: dict[str, bool]

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        parts = {name: _moved(part, device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **parts, points={kind: points.to(device) for kind, points in self.points.items()})

    @property
    def mask(self) -> Tensor:
        """What question tokens attend to [B, 1, U, T]: the context and, causally, their own question; padding attends
        to itself, to stay finite."""
        asked, length = self.owner[:, self.split :], self.owner.shape[1]
        places = torch.arange(length, device=self.owner.device)
        same = self.owner[:, None, :] == asked[:, :, None]
        seen = (self.owner[:, None, :] == 0) | same & (places <= places[self.split :, None])
        return seen[:, None]


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
    rng: random.Random,
    encode: Encoder,
    sizes: Sizes,
    library: Library | Shelf | None = None,
    reach: int = 3000,
    pointing: bool = True,
) -> Batch:
    """A batch of fresh rows, no wider than its widest row; without points where no head is taught what to attend to."""
    rows = [_Row(rng, encode, sizes, reach, library, pointing) for _ in range(sizes.rows)]
    split = sizes.context if sizes.exact else max(len(row.context) for row in rows)
    length = split + (sizes.asked if sizes.exact else max(len(row.asked) for row in rows))
    ids, positions = torch.full((sizes.rows, length), encode.pad), torch.zeros(sizes.rows, length, dtype=torch.long)
    owner = torch.full((sizes.rows, length), -1)
    where, targets, group, tasks = list[int](), list[int](), list[int](), list[str]()
    for number, row in enumerate(rows):
        for start, tokens, places, owners in (
            (0, row.context, row.places, [0] * len(row.context)),
            (split, row.asked, row.asked_places, row.owner),
        ):
            ids[number, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            positions[number, start : start + len(tokens)] = torch.tensor(places, dtype=torch.long)
            owner[number, start : start + len(tokens)] = torch.tensor(owners, dtype=torch.long)
        where += [number * length + split + place for place in row.where]
        group += [len(tasks) + owner_ - 1 for owner_ in (row.owner[place] for place in row.where)]
        targets += row.targets
        tasks += row.tasks
        plain: Sequence[int] = range(len(row.context) - 1)
        plain = rng.sample(plain, sizes.plain) if sizes.plain < len(plain) else plain
        where += [number * length + place for place in plain]
        targets += [row.context[place + 1] for place in plain]
        group += [PLAIN] * len(plain)
    points = {kind: _points(rng, rows, kind, split, length) for kind in KINDS if pointing}
    pointed = {kind: bool(found.meant.any()) for kind, found in points.items()}
    targets_ = (torch.tensor(part) for part in (where, targets, group))
    return Batch(ids, positions, owner, split, *targets_, tasks, points, pointed)


def _points(rng: random.Random, rows: list[_Row], kind: str, split: int, length: int) -> Points:
    """The points of this kind: as many of every row as there is room for."""
    found = [[point for point in row.points if point.kind == kind] for row in rows]
    found = [rng.sample(points, ROOM) if len(points) > ROOM else points for points in found]
    most = max(1, max(map(len, found)))
    at, meant = torch.zeros(len(rows), most, dtype=torch.long), torch.zeros(len(rows), most, dtype=torch.bool)
    spots = list[tuple[int, int, int]]()
    for row, points in enumerate(found):
        for number, point in enumerate(points):
            at[row, number], meant[row, number] = split * point.asked + point.at, True
            spots += ((row, number, gold + split * point.inner) for gold in point.golds)
    return Points(at, meant, torch.tensor(spots, dtype=torch.long).view(-1, 3).T, length)


class _Row:
    """One context and its questions as lists: ids, positions, which question a token belongs to, what is supervised."""

    def __init__(
        self, rng: random.Random, encode: Encoder, sizes: Sizes, reach: int, library: Library | Shelf | None,
        pointing: bool,
    ) -> None:  # fmt: skip
        drawn = _draw(rng, encode, sizes, library)
        pieces = [piece[: sizes.context] for piece in encode.context(drawn.chunks)]
        self.context = [i for piece in pieces for i in piece][: sizes.context]
        *self.places, self.end = _positions(rng, pieces, reach)
        self.places = self.places[: sizes.context]
        self.asked, self.asked_places, self.owner = list[int](), list[int](), list[int]()
        self.where, self.targets, self.tasks = list[int](), list[int](), list[str]()
        self.points = list[Point]()
        for question in choose(rng, drawn.questions, sizes.two_hop, sizes.lists):
            before = prompt(rng, encode, question, sizes.cloze)
            answer = encode.answer(question.answer)
            if len(self.asked) + len(before) + len(answer) - 1 > sizes.asked:
                break
            if pointing:
                self._point(question, drawn, encode, before, answer)
            self._add(before, answer, question.task)

    def _point(
        self, question: Question, drawn: Passage, encode: Encoder, before: list[int], answer: list[int]
    ) -> None:  # fmt: skip
        """Add what the end of the question's prompt, and the values that state its answer, should attend to."""
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
        """Each compared name attends to its value, and the end of the question to the name that is the answer."""
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


def _draw(rng: random.Random, encode: Encoder, sizes: Sizes, library: Library | Shelf | None) -> Passage:
    """Draw what a row is made of."""
    if sizes.shelf:
        if not isinstance(library, Shelf):
            raise ValueError("a stage with `shelf` needs the packed text: python -m training.pack")
        return DRAWN[sizes.shelf](rng, encode, sizes, library)
    if sizes.real:
        return draw_real(rng, encode, sizes, None if isinstance(library, Shelf) else library)
    return draw_world(rng, encode, sizes)


def _ends(question: Question, found: Aim, encode: Encoder) -> dict[str, list[int]]:
    """What the end of a question attends to, by kind: a head that is not to answer it rests on the first token."""
    if question.task == "unanswerable":
        return RESTING | {ANSWER: [encode.nothing]}
    if found.named:
        return {SEEK: [0], NAME: [0]}
    return RESTING | found.ends if found.ends else {}


def _member_end(question: Question, encode: Encoder, answer: list[int], number: int) -> int:
    """Place, after the question's end, of the token before the next member of a list or before the answer's end."""
    members = [fact.name for fact in question.facts][: number + 1]
    text = (", ".join(members) + "," * (len(members) < len(question.facts))).removeprefix(ARTICLE)
    spans = (place for place in range(len(answer)) if text in encode.tokenizer.decode(answer[: place + 1]))
    return next(spans) + 1
