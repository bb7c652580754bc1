"""What heads are taught to attend to: the tokens of the words that state the answer, and no others."""

import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer

from samkv_rag.eval.worlds import NOT_FOUND, Fact, Question
from training.data import _member_end, make_batch
from training.export import WEIGHTS
from training.model import Reader, Shape
from training.optimiser import Optimiser, orthogonal
from training.passages import Encoder, Passage, Sizes, draw_world
from training.pointing import ANSWER, ARTICLE, BIND, FIND, NAME, SEEK, SOURCE, Aim, Finder, name_end
from training.train import losses

SIZES = Sizes(rows=3, context=400, asked=300, plain=8, chunks=8)
HEADS = {
    BIND: (BIND, 0, 1), SOURCE: (SOURCE, 0, 0), FIND: (FIND, 1, 0), SEEK: (SEEK, 1, 0), ANSWER: (ANSWER, 1, 1),
    NAME: (NAME, 1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))


def words_at(encode: Encoder, ids: list[int], first: int, count: int = 12) -> str:
    return encode.tokenizer.decode(ids[first : first + count]).strip()


def words_until(encode: Encoder, ids: list[int], last: int, count: int = 12) -> str:
    return encode.tokenizer.decode(ids[max(0, last + 1 - count) : last + 1])


def test_mentions_are_whole_words_at_their_tokens(encode: Encoder) -> None:
    chunks = ["The Zastos pump costs 43 euros. The Zastosan pump does not.", "It replaced the Zastos pump in 1943."]
    finder = Finder(encode.tokenizer, chunks, len(encode.head), len(encode.between))
    ids = [i for piece in encode.context(chunks) for i in piece]
    found = finder.mentions([0, 1], ["Zastos pump", "43"])
    assert [mention.chunk for mention in found] == [0, 0, 1]
    for mention, words in zip(found, ["Zastos pump", "43", "Zastos pump"], strict=True):
        assert encode.tokenizer.decode(ids[mention.first : mention.last + 1]).strip() == words


@pytest.mark.parametrize("seed", range(4))
def test_aims_are_at_the_answer_in_the_chunks_that_state_it(encode: Encoder, seed: int) -> None:
    passage = draw_world(random.Random(seed), encode, SIZES)
    ids = [i for piece in encode.context(passage.chunks) for i in piece]
    aimed = [(q, passage.aim(q)) for q in passage.questions if not q.facts]
    assert {kind for _, aim in aimed for kind, places in aim.ends.items() if places} == {ANSWER, FIND, SEEK, NAME}
    for question, aim in aimed:
        for place in aim.ends.get(ANSWER, []) + aim.ends.get(NAME, []):
            assert words_at(encode, ids, place).lower().startswith(question.answer.lower().removeprefix(ARTICLE))
        for place in aim.ends.get(SEEK, []):
            assert words_until(encode, ids, place).lower().endswith(question.value.lower())
        for point in aim.bound:
            assert max(point.golds) < point.at
        if question.task.startswith("two_hop"):
            assert all(words_until(encode, ids, place).endswith(question.subject) for place in aim.ends.get(FIND, []))


@pytest.mark.parametrize("seed", range(4))
def test_sources_begin_the_name_that_a_question_about_a_value_asks_for(encode: Encoder, seed: int) -> None:
    passage = draw_world(random.Random(seed), encode, SIZES)
    ids = [i for piece in encode.context(passage.chunks) for i in piece]
    aimed = [(q.answer, point) for q in passage.questions if q.value and not q.facts for point in passage.aim(q).bound]
    sources = [(name, gold) for name, point in aimed if point.kind == SOURCE for gold in point.golds]
    assert sources
    for name, place in sources:
        assert words_at(encode, ids, place).lower().startswith(name.lower().removeprefix(ARTICLE))


def test_unanswerable_questions_aim_at_nothing(encode: Encoder) -> None:
    passage = draw_world(random.Random(3), encode, SIZES)
    unanswerable = [q for q in passage.questions if q.task == "unanswerable"]
    assert unanswerable and all(passage.aim(q) == Aim({}, []) for q in unanswerable)


def test_where_nothing_answers_the_instruction_does(encode: Encoder) -> None:
    assert encode.tokenizer.decode(encode.head[encode.nothing :]).strip().startswith(NOT_FOUND)
    batch = make_batch(random.Random(1), encode, SIZES)
    golds = batch.points[ANSWER].flat()[1].nonzero()[:, 1]
    assert batch.tasks.count("unanswerable") == (golds == encode.nothing).sum()


def test_end_of_a_name_in_a_question(encode: Encoder) -> None:
    prompt = encode.question("Who makes the Zastos pump?")
    place = name_end(encode.tokenizer, prompt, ["Zastos pump", "Zastos", "Bogea scanner"])
    assert place is not None
    assert encode.tokenizer.decode(prompt[: place + 1]).endswith("Zastos pump")
    assert name_end(encode.tokenizer, prompt, ["Bogea scanner"]) is None


def test_every_point_sees_a_gold_and_looking_is_what_the_head_attends_to(encode: Encoder) -> None:
    torch.manual_seed(0)
    batch = make_batch(random.Random(1), encode, SIZES)
    reader = Reader(Shape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=32))
    found = losses(reader, batch, HEADS)
    assert set(found.hits) == set(HEADS)
    assert all(0 < share < 1 for share in found.hits.values())
    options = {"rest_weight": 0.5, "plain_weight": 0.3, "point_weight": 1.0}
    optimiser, before = Optimiser(reader, 0.0), found.points[ANSWER].item()
    for _ in range(30):
        losses(reader, batch, HEADS).total(options).backward()
        optimiser.step(3e-3)
    assert losses(reader, batch, HEADS).points[ANSWER].item() < before


def test_optimiser_has_every_weight_once() -> None:
    reader = Reader(Shape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=32))
    held = [id(w) for part in Optimiser(reader, 0.1).parts for group in part.param_groups for w in group["params"]]
    assert sorted(held) == sorted(id(w) for w in reader.parameters())


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)])
def test_orthogonal_steps_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonal(matrices)
    weights = torch.einsum("nak,nab,nkb->nk", u, made, v)  # in the basis of the matrix it is diagonal
    large = s > 0.1 * s[:, :1]
    assert weights[large].min() > 0.6 and weights[large].max() < 1.3
    assert torch.allclose(made, (u * weights[:, None]) @ v, atol=1e-4)


def collected(encode: Encoder, task: str, seeds: int = 12) -> list[tuple[Passage, Question]]:
    """Questions of a task about several chunks, with their passages."""
    drawn = [draw_world(random.Random(seed), encode, replace(SIZES, chunks=14, context=900)) for seed in range(seeds)]
    return [(passage, question) for passage in drawn for question in passage.questions if question.task == task]


def test_compared_names_look_for_their_values(encode: Encoder) -> None:
    asked = collected(encode, "comparison")
    assert len(asked) > 20
    for passage, question in asked:
        ids = [i for piece in encode.context(passage.chunks) for i in piece]
        found = passage.aim(question)
        values = {fact.name: fact.value for fact in question.facts}
        assert found.chosen == question.answer and set(found.named) == set(values)
        for name, places in found.named.items():
            assert all(words_until(encode, ids, place).endswith(values[name]) for place in places)
    pointed = [bool(places) for passage, question in asked for places in passage.aim(question).named.values()]
    assert sum(pointed) > 0.9 * len(pointed)  # a value that precedes its name has no place to be sought


def test_members_of_a_list_are_sought_one_after_another(encode: Encoder) -> None:
    asked = collected(encode, "listing", 30)
    assert len(asked) > 3
    for passage, question in asked:
        ids = [i for piece in encode.context(passage.chunks) for i in piece]
        found = passage.aim(question)
        assert len(found.steps) == len(question.facts) - 1
        for fact, looks in zip(question.facts, [found.ends, *found.steps], strict=True):
            assert all(words_until(encode, ids, place).endswith(question.value) for place in looks[SEEK])
            begun = [words_at(encode, ids, place).lower() for place in looks[NAME]]
            assert begun and all(words.startswith(fact.name.lower().removeprefix(ARTICLE)) for words in begun)
    assert sum(bool(passage.aim(question).ends[SEEK]) for passage, question in asked) > len(asked) / 2


def test_the_end_of_each_member_is_where_the_next_is_sought(encode: Encoder) -> None:
    facts = (Fact("the Oslo lamp", "tin", frozenset()), Fact("the Rome lamp", "tin", frozenset()))
    question = Question("?", "the Oslo lamp, the Rome lamp", "listing", value="tin", facts=facts)
    answer = encode.answer(question.answer)
    ends = [encode.tokenizer.decode(answer[: _member_end(question, encode, answer, number)]) for number in (0, 1)]
    assert [end.strip() for end in ends] == ["Oslo lamp,", "Oslo lamp, the Rome lamp"]


def test_long_chunks_are_asked_only_what_their_filling_does_not_touch(encode: Encoder) -> None:
    passage = draw_world(random.Random(1), encode, replace(SIZES, filled=120, context=1000, alike=True, named=False))
    assert {question.task for question in passage.questions} <= {"one_hop", "unanswerable"}
    lengths = [len(encode(chunk)) for chunk in passage.chunks]
    assert sum(length > 80 for length in lengths) == len(lengths) > 3
    names = [question.subject for question in passage.questions if question.subject]
    assert all(sum(name in chunk for chunk in passage.chunks) <= 3 for name in names)
