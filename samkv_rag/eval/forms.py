"""Forms of question sets: what a row must hold to become a question with passages.

ours       {question, answers: [...], passages: [{title, text}], supporting: [indices]}; a passage may be a text
LongBench  {input, context, answers: [...]}: the context is split at its "Passage N:" headings; one without them is a
           single passage (cut it with --chunk-tokens). Rows with `all_classes` (classification) are refused.
HotpotQA   {question, answer, context: {title: [...], sentences: [[...]]}, supporting_facts: {title: [...]}} (2Wiki too)
SQuAD      {question, context, answers: {text: [...]}}: one passage
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from samkv_rag.errors import SamKVError
from samkv_rag.eval.tasks import ChunkSize

_PASSAGE = re.compile(r"^Passage \d+:[ \t]*\n?", re.MULTILINE)
_WORD = re.compile(r"\w")
_BREAK = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Asked:
    """A question of a set: `supporting` are the indices of the passages that are said to hold the answer."""

    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]
    supporting: frozenset[int] = frozenset()

    def within(self, most: int | None) -> Asked:
        """At most `most` passages: the supporting ones, then the first of the others, all in their original order."""
        if most is None or len(self.passages) <= most:
            return self
        wanted = sorted(range(len(self.passages)), key=lambda index: (index not in self.supporting, index))
        return replace(self, passages=tuple(self.passages[index] for index in sorted(wanted[:most])))

    def cut(self, size: ChunkSize | None) -> Asked:
        """The same, with passages longer than `size` in pieces of whole sentences."""
        if size is None:
            return self
        return replace(self, passages=tuple(piece for text in self.passages for piece in pieces(text, size)))


def pieces(text: str, size: ChunkSize) -> list[str]:
    """`text` in pieces of at most about `size.tokens` tokens, cut between sentences; longer sentences stay whole."""
    found: list[list[str]] = [[]]
    used = 0
    for sentence in filter(None, _BREAK.split(text.strip())):
        count = size.count(" " + sentence)
        if found[-1] and used + count > size.tokens:
            found.append([])
            used = 0
        found[-1].append(sentence)
        used += count
    return [" ".join(piece) for piece in found if piece]


def asked(row: Mapping[str, Any], where: str, marked: bool = True) -> Asked:
    """The question of a row; raises `SamKVError`, naming the place, for a form that is unknown or lacks something.
    Where it is not to be `marked`, a question needs no answer."""
    if not isinstance(row, Mapping):
        raise SamKVError(f"{where} is not a JSON object; a row is one, with a question, answers and passages.")
    if not marked:
        row = _with_answers(row)
    for marks, read in _FORMS:
        if marks <= row.keys():
            try:
                question = read(row)
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise SamKVError(f"{where} is not of the form its keys promise: {error!r}.") from error
            answered = not marked or any(map(_WORD.search, question.answers))
            if question.text.strip() and question.passages and answered:
                return question
            needs = "no question, no passage or no answer (punctuation alone is none)"
            raise SamKVError(
                f"{where} has {needs if marked else 'no question or no passage'}; leave it out of the file."
            )
    raise SamKVError(
        f"{where} has the keys {', '.join(sorted(row))}; a row needs question, answers and passages, or the keys of "
        "LongBench, HotpotQA or SQuAD (README, Measure it on your own data)."
    )


def _with_answers(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, with no answers where it has none, in the form that the others of its kind have."""
    told = {name: value for name, value in row.items() if name not in ("answer", "answers") or value is not None}
    if "answer" in told or "answers" in told:
        return told
    return {**told, "answers": []} if isinstance(row.get("context", ""), str) else {**told, "answer": ""}


def _ours(row: Mapping[str, Any]) -> Asked:
    if isinstance(row["passages"], str):
        raise TypeError("passages must be a list")
    passages = [_passage(passage) for passage in row["passages"]]
    supporting = row.get("supporting") or ()
    if not all(type(index) is int for index in supporting):
        raise TypeError("supporting must be indices of passages")
    return _asked(row["question"], row["answers"], passages, supporting)


def _passage(passage: Any) -> str:
    return _titled("", passage) if isinstance(passage, str) else _titled(passage.get("title"), passage["text"])


def _longbench(row: Mapping[str, Any]) -> Asked:
    if row.get("all_classes"):
        raise KeyError("all_classes (a classification task; only question answering is supported)")
    return _asked(row["input"], row["answers"], [part.strip() for part in _PASSAGE.split(row["context"])])


def _hotpot(row: Mapping[str, Any]) -> Asked:
    """A row as on the hub, columns by name, or of the file that its authors published: pairs."""
    context, facts = row["context"], row.get("supporting_facts", ())
    pairs = context if isinstance(context, list) else zip(context["title"], context["sentences"], strict=True)
    titles, texts = zip(*((title, _joined(sentences)) for title, sentences in pairs), strict=True)
    named = set(facts["title"] if isinstance(facts, Mapping) else (title for title, _ in facts))
    passages = [_titled(title, text) for title, text in zip(titles, texts, strict=True)]
    return _asked(row["question"], [row["answer"]], passages, [i for i, t in enumerate(titles) if t in named])


def _squad(row: Mapping[str, Any]) -> Asked:
    return _asked(row["question"], row["answers"], [row["context"]], [0])


def _asked(question: str, answers: Any, passages: list[str], supporting: Any = ()) -> Asked:
    kept = [index for index, text in enumerate(passages) if text.strip()]
    answers = answers["text"] if isinstance(answers, Mapping) else answers  # as in SQuAD
    answers = answers if isinstance(answers, list | tuple) else [answers]
    if any(not isinstance(answer, str | int | float) or answer != answer for answer in answers):
        raise TypeError("the answers must be texts")
    golds = tuple(dict.fromkeys(str(answer) for answer in answers))
    marked = frozenset(new for new, old in enumerate(kept) if old in set(supporting))
    return Asked(question.strip(), golds, tuple(passages[index].strip() for index in kept), marked)


def _titled(title: Any, text: Any) -> str:
    if not isinstance(text, str) or not isinstance(title, str | None):
        raise TypeError("title and text of a passage must be texts")
    return f"{title}\n{text}" if title else text


def _joined(sentences: Any) -> str:
    """A paragraph, as a text or in sentences: HotpotQA's begin with the blank between them, 2Wiki's do not. Between
    signs that are not ASCII (Chinese full stops) none is due."""
    if isinstance(sentences, str):
        return sentences
    whole = ""
    for sentence in sentences:
        due = whole[-1:].isascii() and sentence[:1].isascii() and not (whole[-1:].isspace() or sentence[:1].isspace())
        whole += f" {sentence}" if whole and due else sentence
    return whole


_FORMS = (
    ({"question", "answers", "passages"}, _ours),
    ({"input", "context", "answers"}, _longbench),
    ({"question", "answer", "context"}, _hotpot),
    ({"question", "context", "answers"}, _squad),
)
