"""What a training row is made of: chunks of a generated world or of real text, and what is asked about them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from tokenizers import Tokenizer

from samkv_rag.eval import phrases, worlds
from samkv_rag.eval.tasks import comparison, listing
from samkv_rag.eval.tasks.drafts import Shown
from samkv_rag.eval.tasks.filling import ChunkSize, filled, named_sentences
from samkv_rag.eval.worlds import Context, Draft, Question
from training.pointing import ANSWER, ARTICLE, FIND, Aim, Finder, aim
from training.real import Item, Library
from training.spelling import respell

INSTRUCTION = "Answer from the passages in a few words, or say: not in the passages.\n\n"
SHARES = {
    "read": 1.0,
    "cloze": 0.3,
    "blank": 0.3,
    "chain": 0.7,
    "pair": 0.3,
    "one_hop": 0.34,
    "earlier_chunk": 0.24,
    "two_hop": 0.27,
    "two_hop_near": 0.05,
    "comparison": 0.09,
    "listing": 0.07,
    "unanswerable": 0.2,
}
NOT_SIZES = frozenset(("name", "mix", "pass", "weight", "plain_weight", "further"))
"""What a stage has besides sizes: when it comes, and how much it counts."""
PAIRS = 6  # comparisons about one context, at most
REMEMBERED = 4096  # texts whose ids are remembered: a chunk is measured before it is shown


@dataclass(frozen=True)
class Sizes:
    """Limits of a batch: rows, context tokens, question tokens, context tokens that are supervised,
    most chunks per context, factors on the shares of two-hop questions and of lists,
    the share of facts that are asked for with the beginning of a sentence, and the share of relations in a world
    (the smaller, the more things in a context are alike but for their names; with `alike` all of them are, and every
    sentence names its subject unless `named` is False).
    `respelt` is the share of worlds whose names are respelt from any tokens, so that rare ones are copied as well.
    With `filled`, sentences of other worlds, each naming its subject, lengthen the chunks to that many tokens.
    With `real` the rows are real text from a library instead of worlds.
    With `shelf` they are packed text: plain `text`, what `people` asked, or questions `made` from pages.
    `swapped` is the share of people's passages in which another answer replaces one of theirs.
    With `exact` a batch takes all the room it is given, so that all batches of a stage have the same shape."""

    rows: int
    context: int
    asked: int
    plain: int
    chunks: int
    two_hop: float = 1.0
    lists: float = 1.0
    cloze: float = 0.0
    variety: float = 1.0
    alike: bool = False
    named: bool = True
    real: bool = False
    respelt: float = 0.0
    filled: int = 0
    exact: bool = False
    shelf: str = ""
    swapped: float = 0.0


def sizes_of(stage: Mapping[str, Any]) -> Sizes:
    """The sizes of the batches of a configuration's stage."""
    return Sizes(**{key: value for key, value in stage.items() if key not in NOT_SIZES})


class Encoder:
    """Text to ids, piece by piece, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids = lru_cache(REMEMBERED)(self._encode)
        self.bos, self.eos, self.pad = (self.special(t) for t in ("<bos>", "<eos>", "<pad>"))
        self.head = [self.bos, *self(INSTRUCTION)]
        self.nothing = self.head.index(self(" " + worlds.NOT_FOUND)[0])  # where the head says `not`
        self.between = self("\n\n")

    def __call__(self, text: str) -> list[int]:
        return list(self._ids(text))

    def _encode(self, text: str) -> list[int]:
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

    def answer(self, text: str) -> list[int]:
        """The answer as it is to be given: without a leading article, so that it begins with a name."""
        return [*self(" " + text.removeprefix(ARTICLE)), self.eos]

    def context(self, chunks: list[str]) -> list[list[int]]:
        """Ids of the instruction and of each chunk, with the separator before all chunks but the first."""
        return [self.head] + [self.between * (i > 0) + self(chunk) for i, chunk in enumerate(chunks)]


@dataclass(frozen=True)
class Passage:
    """Chunks of a context, what can be asked about them, and for each question what it should attend to."""

    chunks: list[str]
    questions: list[Question]
    aim: Callable[[Question], Aim]
    names: list[str]


def draw_world(rng: random.Random, encode: Encoder, sizes: Sizes) -> Passage:
    """As many chunks of a fresh world as fit, and its questions."""
    made = worlds.draft(
        rng.randrange(2**48), False, max(8, sizes.chunks + rng.randint(-2, 4)), sizes.variety, sizes.alike, sizes.named
    )
    picked = worlds.pick(made, rng, sizes.chunks if rng.random() < 0.7 else rng.randint(1, sizes.chunks))
    lengths = [len(encode.between + encode(made.documents[d].chunks[c])) for d, c in picked]
    lengths = [max(length, sizes.filled) for length in lengths]
    room = sizes.context - len(encode.head)
    while sum(lengths) > room and len(lengths) > 1:
        picked.pop()
        lengths.pop()
    shown, order = worlds.show(made, rng, picked), sorted(picked)
    shown.questions.extend(_collected(rng, Shown(made, tuple(order))))
    if sizes.filled:
        shown = _filled(rng, encode, made, shown, sizes.filled)
    if rng.random() < sizes.respelt:
        made, shown = respell(rng, encode.tokenizer, made, shown)
    finder = Finder(encode.tokenizer, shown.chunks, len(encode.head), len(encode.between))
    look = partial(aim, finder, made, order)
    return Passage(shown.chunks, shown.questions, look, [entity.name for entity in made.entities])


def _collected(rng: random.Random, shown: Shown) -> list[Question]:
    """Comparisons and lists about the shown chunks."""
    pairs = list(comparison.pairs(shown))
    return [comparison.ask(rng, shown, *pair) for pair in rng.sample(pairs, min(PAIRS, len(pairs)))] + list(
        listing.groups(shown)
    )


def _filled(rng: random.Random, encode: Encoder, made: Draft, shown: Context, tokens: int) -> Context:
    """Lengthen the chunks with sentences of other worlds, and keep the questions that these do not affect: "the
    company" of a chunk may now be another one, and a value may be another thing's too."""
    names = " ".join(entity.name for entity in made.entities)
    size = ChunkSize(tokens, lambda text: len(encode(text)))
    sentences = named_sentences(rng, f"About {names}", held_out=False)
    asked = [q for q in shown.questions if q.task in ("one_hop", "unanswerable") and not q.value]
    return Context([filled(rng, chunk, size, sentences) for chunk in shown.chunks], asked)


def draw_real(rng: random.Random, encode: Encoder, sizes: Sizes, library: Library | None) -> Passage:
    """As many real passages as fit, their questions, and sentences to complete."""
    if library is None:
        raise ValueError("a stage with `real = true` needs a [real] table in the configuration")
    chunks, items = library.draw(rng, sizes.chunks)
    while len(chunks) > 1 and sum(len(encode.between + encode(chunk)) for chunk in chunks) > sizes.context - len(
        encode.head
    ):
        chunks.pop()
    kept = [item for item in items if item.passages[0] in chunks]
    places = {item.text: chunks.index(item.passages[0]) for item in kept if item.asked}
    look = partial(aim_at_text, Finder(encode.tokenizer, chunks, len(encode.head), len(encode.between)), places)
    return Passage(chunks, [_as_question(item) for item in kept], look, [])


def aim_at_text(finder: Finder, places: dict[str, int], question: Question) -> Aim:
    """Where the answer is in the passage that a question came with; nothing for sentences to complete."""
    if question.text not in places:
        return Aim({}, [])
    found = finder.mentions([places[question.text]], [question.answer])
    ends = {ANSWER: [mention.head for mention in found], FIND: [mention.last for mention in found]}
    return Aim(ends if found else {}, [])


def _as_question(item: Item) -> Question:
    return Question(item.text, item.answer, "read" if item.asked else "cloze")


_ENDINGS = re.compile(r"\{(\w+)\}( \w+)?\.$")


def _endings() -> dict[tuple[str, str], list[str]]:
    """Beginnings of statements by (kind of thing, relation): everything before a value at the end."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, templates in phrases.STATEMENTS.items():
        for template in templates:
            end = _ENDINGS.search(template)
            if end and template.count("{") == 2:
                found.setdefault((kind, end[1]), []).append(template[: end.start()].rstrip())
    return found


_CLOZES = _endings()


def prompt(rng: random.Random, encode: Encoder, question: Question, cloze: float) -> list[int]:
    """Ids before the answer: the question in its form, or the beginning of a sentence that the answer ends."""
    if question.task == "cloze":
        return encode("\n\n" + question.text)
    beginnings = _CLOZES.get((question.about[0], question.about[2]), []) if question.about else []
    if beginnings and rng.random() < cloze:
        name = question.about[1]
        text = rng.choice(beginnings).format(s=name, p=f"{name}'s")
        return encode("\n\n" + text[0].upper() + text[1:])
    return encode.question(question.text, rng.random() < 0.7)


def choose(rng: random.Random, questions: list[Question], two_hop: float, lists: float = 1.0) -> list[Question]:
    """All questions, in an order that begins with the tasks in their shares."""
    pools: dict[str, list[Question]] = {}
    factors = {"two_hop": two_hop, "two_hop_near": two_hop, "listing": lists}
    shares = {task: share * factors.get(task, 1.0) for task, share in SHARES.items()}
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
