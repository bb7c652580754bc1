"""Training rows: one passage with many questions about it, as fixed-size tensors.

Pieces are tokenised one by one and joined, exactly as the engine does it. Positions jump between chunks in
part of the rows, so that far positions are learned on short contexts.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from samkv_rag.eval import phrases, worlds
from samkv_rag.eval.worlds import Question
from training.pointing import ANSWER, BIND, FIND, Aim, Finder, Point, aim, name_end
from training.real import Item, Library

INSTRUCTION = "Answer from the passages in a few words, or say: not in the passages.\n\n"
SHARES = {
    "read": 1.0,
    "cloze": 0.3,
    "one_hop": 0.34,
    "earlier_chunk": 0.24,
    "two_hop": 0.27,
    "two_hop_near": 0.05,
    "unanswerable": 0.10,
}


@dataclass(frozen=True)
class Sizes:
    """Limits of a batch: rows, context tokens, question tokens, context tokens that are supervised,
    most chunks per context, a factor on the share of two-hop questions,
    the share of facts that are asked for by the beginning of a sentence, and the share of relations in a world
    (the smaller, the more things in a context are alike but for their names; with `alike` all of them).
    With `real` the rows are real text from a library instead of worlds."""

    rows: int
    context: int
    asked: int
    plain: int
    chunks: int
    two_hop: float = 1.0
    cloze: float = 0.0
    variety: float = 1.0
    alike: bool = False
    real: bool = False


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


class Encoder:
    """Text to ids, piece by piece, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos, self.pad = (self.special(t) for t in ("<bos>", "<eos>", "<pad>"))
        self.head = [self.bos, *self(INSTRUCTION)]
        self.between = self("\n\n")

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def special(self, token: str) -> int:
        """Id of a special token."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {token}")
        return int(found)

    def question(self, text: str, whole: bool = True) -> list[int]:
        """The question part of the prompt; as one piece, or with the question's text as a piece of its own."""
        if whole:
            return self(f"\n\nQuestion: {text}\nAnswer:")
        return self("\n\nQuestion: ") + self(text) + self("\nAnswer:")

    def context(self, chunks: list[str]) -> list[list[int]]:
        """Ids of the instruction and of each chunk, the separator in front of all but the first."""
        return [self.head] + [self.between * (i > 0) + self(chunk) for i, chunk in enumerate(chunks)]


@dataclass(frozen=True)
class Passage:
    """Chunks of a context, what can be asked about them, and for each question what it should look at."""

    chunks: list[str]
    questions: list[Question]
    aims: dict[int, Aim]
    names: list[str]


def draw_world(rng: random.Random, encode: Encoder, sizes: Sizes) -> Passage:
    """As many chunks of a fresh world as fit, and its questions."""
    made = worlds.draft(
        rng.randrange(2**48), False, max(8, sizes.chunks + rng.randint(-2, 4)), sizes.variety, sizes.alike
    )
    picked = worlds.pick(made, rng, sizes.chunks if rng.random() < 0.7 else rng.randint(1, sizes.chunks))
    lengths = [len(encode.between + encode(made.documents[d].chunks[c])) for d, c in picked]
    room = sizes.context - len(encode.head)
    while sum(lengths) > room and len(lengths) > 1:
        picked.pop()
        lengths.pop()
    shown, order = worlds.show(made, rng, picked), sorted(picked)
    finder = Finder(encode.tokenizer, shown.chunks, len(encode.head), len(encode.between))
    aims = {id(question): aim(finder, made, order, question) for question in shown.questions if question.needs}
    return Passage(shown.chunks, shown.questions, aims, [entity.name for entity in made.entities])


def draw_real(rng: random.Random, encode: Encoder, sizes: Sizes, library: Library) -> Passage:
    """As many real passages as fit, their questions, and sentences to complete."""
    chunks, items = library.draw(rng, sizes.chunks)
    while len(chunks) > 1 and sum(len(encode.between + encode(chunk)) for chunk in chunks) > sizes.context - len(
        encode.head
    ):
        chunks.pop()
    kept = [item for item in items if item.passages[0] in chunks]
    return Passage(chunks, [_as_question(item) for item in kept], {}, [])


def _as_question(item: Item) -> Question:
    return Question(item.text, item.answer, "read" if item.asked else "cloze")


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


_ENDINGS = re.compile(r"\{(\w+)\}( \w+)?\.$")


def _endings() -> dict[tuple[str, str], list[str]]:
    """Beginnings of statements by (kind of thing, relation): all that comes before a value at the end."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, templates in phrases.STATEMENTS.items():
        for template in templates:
            end = _ENDINGS.search(template)
            if end and template.count("{") == 2:
                found.setdefault((kind, end[1]), []).append(template[: end.start()].rstrip())
    return found


_CLOZES = _endings()


def _prompt(rng: random.Random, encode: Encoder, question: Question, cloze: float) -> list[int]:
    """Ids before the answer: the question in its form, or the beginning of a sentence that ends in the answer."""
    if question.task == "cloze":
        return encode("\n\n" + question.text)
    beginnings = _CLOZES.get((question.about[0], question.about[2]), []) if question.about else []
    if beginnings and rng.random() < cloze:
        name = question.about[1]
        text = rng.choice(beginnings).format(s=name, p=f"{name}'s")
        return encode("\n\n" + text[0].upper() + text[1:])
    return encode.question(question.text, rng.random() < 0.7)


def _choose(rng: random.Random, questions: list[Question], two_hop: float) -> list[Question]:
    """All questions, in an order whose beginning has the tasks in their shares."""
    pools: dict[str, list[Question]] = {}
    shares = {task: share * (two_hop if task.startswith("two_hop") else 1.0) for task, share in SHARES.items()}
    for question in questions:
        if shares[question.task] == 0:
            continue
        pools.setdefault(question.task, []).append(question)
    order, unanswerable = list[Question](), 0
    while pools and list(pools) != ["unanswerable"]:
        task = rng.choices(list(pools), [shares[t] for t in pools])[0]
        if task == "unanswerable" and unanswerable > SHARES[task] * len(order):
            continue
        unanswerable += task == "unanswerable"
        order.append(pools[task].pop())
        if not pools[task]:
            del pools[task]
    return order


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
        {kind: _points(rows, kind, split, length) for kind in (BIND, FIND, ANSWER)},
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
        drawn = draw_real(rng, encode, sizes, _needed(library)) if sizes.real else draw_world(rng, encode, sizes)
        pieces = [piece[: sizes.context] for piece in encode.context(drawn.chunks)]
        self.context = [i for piece in pieces for i in piece][: sizes.context]
        *self.places, self.end = _positions(rng, pieces, reach)
        self.places = self.places[: sizes.context]
        self.asked, self.asked_places, self.owner = list[int](), list[int](), list[int]()
        self.where, self.targets, self.tasks = list[int](), list[int](), list[str]()
        self.points = list[Point]()
        for question in _choose(rng, drawn.questions, sizes.two_hop):
            prompt = _prompt(rng, encode, question, sizes.cloze)
            answer = [*encode(" " + question.answer), encode.eos]
            if len(self.asked) + len(prompt) + len(answer) - 1 > sizes.asked:
                break
            self._point(question, drawn, encode, prompt)
            self._add(prompt, answer, question.task)

    def _point(self, question: Question, drawn: Passage, encode: Encoder, prompt: list[int]) -> None:
        """What the end of the question's prompt, and the values that state its answer, should look at."""
        end, room = len(self.asked) + len(prompt) - 1, len(self.context)
        found = drawn.aims.get(id(question), Aim([], [], []))
        self.points += [point for point in found.bound if point.at < room]
        for kind, places in ((ANSWER, found.answer), (FIND, found.find)):
            inside = tuple(place for place in places if place < room)
            if inside:
                self.points.append(Point(kind, end, inside, asked=True))
        named = name_end(encode.tokenizer, prompt, drawn.names)
        if named is not None:
            self.points.append(Point(BIND, end, (len(self.asked) + named,), asked=True, inner=True))

    def _add(self, prompt: list[int], answer: list[int], task: str) -> None:
        tokens = prompt + answer[:-1]
        self.where += range(len(self.asked) + len(prompt) - 1, len(self.asked) + len(tokens))
        self.targets += answer
        self.asked += tokens
        self.asked_places += range(self.end, self.end + len(tokens))
        self.tasks.append(task)
        self.owner += [len(self.tasks)] * len(tokens)


def _needed(library: Library | None) -> Library:
    if library is None:
        raise ValueError("a stage with `real = true` needs a [real] table in the configuration")
    return library


def _mask(owner: Tensor, context: int) -> Tensor:
    """Question tokens see the context and, causally, their own question; padding sees itself, to stay finite."""
    asked, length = owner[:, context:], owner.shape[1]
    same = owner[:, None, :] == asked[:, :, None]
    causal = torch.arange(length)[None, :] <= torch.arange(context, length)[:, None]
    seen = (owner[:, None, :] == 0) | same & causal
    return seen[:, None]
