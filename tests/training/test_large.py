"""The large reader's training: its mixture follows the clock, its batches have one size, and it learns."""

import json
import pickle
import random
from dataclasses import replace
from multiprocessing import Value
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from training.attention import _fused, as_bias, attend
from training.data import make_batch
from training.export import WEIGHTS
from training.facts import read_facts
from training.large import CONFIG, Batches, Run, choose_stage, exact_sizes, share_at
from training.linking import links
from training.optimiser import rate_at
from training.pages import Page
from training.passages import Encoder
from training.real import Exclusion, Item, passage, words
from training.shelf import DRAWN, Shelf, varied
from training.train import read_config

TEXTS = {
    "Ola Brandt": "Ola Brandt (born 3 May 1951) is a Norwegian painter. Brandt was born in Bergen. "
    "The painter lives in Oslo. Her first show opened in Oslo in 1974.",
    "Mira Holt": "Mira Holt (born 9 June 1948) is a Danish painter. Holt was born in Aarhus. She lives in Ribe.",
    "The Last Ferry": "The Last Ferry is a 1983 Norwegian drama film directed by Ola Brandt. It was released in 1983.",
    "The First Snow": "The First Snow is a 1990 Danish drama film directed by Mira Holt. It was released in 1990.",
}


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")))


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    pages = {title: (text, read_facts(title, text)) for title, text in TEXTS.items()}
    items = [Item("Where does Ola Brandt live?", "Oslo", (passage("Ola Brandt", TEXTS["Ola Brandt"]),))]
    about = {items[0].passages[0]: items}
    titled = {"Ola Brandt": list(about)}
    return Shelf(
        items, about, titled, pages, sorted(pages), links(pages), [Page(*page) for page in TEXTS.items()], Exclusion()
    )


def test_shares_go_straight_from_point_to_point() -> None:
    assert [share_at([0.0, 1.0, 0.5], progress) for progress in (-1, 0, 0.25, 0.5, 0.75, 1, 2)] == [
        0.0, 0.0, 0.5, 1.0, 0.75, 0.5, 0.5
    ]  # fmt: skip


def test_a_stage_that_has_no_share_yet_is_not_drawn() -> None:
    config, rng = read_config(CONFIG), random.Random(0)
    first = {choose_stage(rng, config, 0.0) for _ in range(500)}
    assert all(config["stages"][stage]["mix"][0] > 0 for stage in first)
    assert any(stage["mix"][0] == 0 for stage in config["stages"])


def test_the_rate_warms_up_stays_and_falls() -> None:
    options = {"rate": 1.0, "warmup": 10, "decay": 0.5, "least": 0.02}
    assert rate_at(0.0, 0, options) == pytest.approx(0.1)
    assert rate_at(0.4, 99, options) == 1.0
    assert rate_at(0.75, 99, options) == pytest.approx(0.5)
    assert rate_at(1.0, 99, options) == pytest.approx(0.02)


def test_all_batches_have_as_many_tokens() -> None:
    sizes = [exact_sizes(stage) for stage in read_config(CONFIG)["stages"]]
    assert {one.rows * (one.context + one.asked) for one in sizes} == {65_536}
    assert all((one.context + one.asked) % 8 == 0 for one in sizes)  # fused attention with a bias needs that


@pytest.mark.parametrize("kind", DRAWN)
def test_rows_of_every_kind_ask_what_their_passages_answer(kind: str, encode: Encoder, shelf: Shelf) -> None:
    stage = next(stage for stage in read_config(CONFIG)["stages"] if stage.get("shelf") == kind)
    sizes = replace(exact_sizes(stage), rows=3)
    batch = make_batch(random.Random(1), encode, sizes, shelf)
    assert batch.ids.shape == (3, sizes.context + sizes.asked)
    assert bool(batch.tasks) == (kind != "text")
    passage_ = DRAWN[kind](random.Random(1), encode, sizes, shelf)
    shown = "\n\n".join(passage_.chunks)
    said = [q.answer for q in passage_.questions if q.task not in ("unanswerable", "pair")]
    assert all(answer in shown for answer in said) and bool(said) == (kind != "text")


def test_what_evaluation_asks_is_never_generated(encode: Encoder, shelf: Shelf) -> None:
    stage = next(stage for stage in read_config(CONFIG)["stages"] if stage.get("shelf") == "made")
    asked = DRAWN["made"](random.Random(1), encode, exact_sizes(stage), shelf).questions
    first = next(question.text for question in asked if question.task == "read")
    held = replace(shelf, excluded=Exclusion({" ".join(words(first))}))
    left = DRAWN["made"](random.Random(1), encode, exact_sizes(stage), held).questions
    assert first not in {question.text for question in left} and 0 < len(left) < len(asked)


def test_a_question_is_varied_but_never_loses_its_first_word() -> None:
    rng, question = random.Random(0), "Where did Ola Brandt show her work first?"
    seen = {varied(rng, question) for _ in range(200)}
    assert len(seen) > 5 and question in seen
    assert all(text.lower().startswith("where") for text in seen)


def test_fused_attention_is_the_attention_in_pieces() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 30, 8), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8)
    mask = torch.ones(2, 1, 10, 30, dtype=torch.bool).tril(20)
    mask[:, :, :, 5] = False
    assert torch.allclose(_fused(q, k, v, as_bias(mask), 20), attend(q, k, v, as_bias(mask), 20), atol=1e-5)
    alone = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(_fused(q, k, v, as_bias(mask[:, :, :0]), 30), alone, atol=1e-5)


def test_a_run_learns_from_what_its_workers_make(encode: Encoder, shelf: Shelf, tmp_path: Path) -> None:
    config = read_config(CONFIG) | {"folder": str(tmp_path)}
    stage = {**config["stages"][2], "rows": 4, "mix": [1.0, 1.0]}
    config |= {"vocab": 3072, "stages": [stage]}
    config["shape"] |= {"hidden": 192, "head_dim": 32, "mlp": 64}
    run = Run(config, encode, torch.device("cpu"))
    feed = iter(Batches(config, encode, shelf, Value("d", 0.0)))  # type: ignore[arg-type]
    number, packed = next(feed)
    assert number == 0
    batch, first = pickle.loads(packed), list[float]()
    for _ in range(6):
        run.update(0, batch, 0.1)
        first.append(run.sums.means()["alike first"])
    assert first[-1] < first[0]
    assert not any(average.requires_grad for average in run.average), "an average is no part of what is learned"
    run.record(1.0)
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 6
    (tmp_path / "tokenizer").symlink_to(WEIGHTS)
    run.save()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    assert {name for name, _ in saved.named_parameters()} == {name for name, _ in run.reader.named_parameters()}


def test_packed_text_is_asked_for_where_a_stage_needs_it(encode: Encoder) -> None:
    stage = next(stage for stage in read_config(CONFIG)["stages"] if stage.get("shelf"))
    with pytest.raises(ValueError, match=r"training\.pack"):
        make_batch(random.Random(0), encode, exact_sizes(stage))
