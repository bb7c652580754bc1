"""The bundled readers load like any model, encode any text, and answer easy questions about unseen names."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from samkv_rag import reader
from samkv_rag.eval import worlds

INSTRUCTION = "Answer from the passages in a few words, or say: not in the passages.\n\n"
EASY_SHARE = 0.7  # a floor for one-hop questions on four chunks, far below what CARD.md reports
MIB = 2**20


@pytest.fixture(scope="module", params=[reader.BUNDLED, reader.SMALL])
def folder(request: pytest.FixtureRequest) -> Path:
    return reader.path(request.param)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_weights_are_small_and_plain(folder: Path) -> None:
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {"config.json", "tokenizer.json"} <= set(files)
    assert max(files.values()) < 16 * MIB and sum(files.values()) < 40 * MIB


def test_only_its_own_names_are_bundled() -> None:
    assert reader.is_bundled("bundled") and reader.is_bundled("bundled-small")
    assert not reader.is_bundled("bundled-tiny") and not reader.is_bundled(None)


@pytest.mark.parametrize("text", ["Oslo", " Oslo", "naïve – «Größe» 東京 🙂\n\n\t", "<bos> is text here", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == (text if text[0].isspace() else f" {text}"), "words begin alike wherever they stand"
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.max_position_embeddings >= 4096


CONVERSATIONS = {
    "a prompt as it was trained on": (
        [("user", f"{INSTRUCTION}Lumen Labs is based in Oslo.\n\nQuestion: Where is Lumen Labs?\nAnswer:")],
        f"<bos>{INSTRUCTION}Lumen Labs is based in Oslo.\n\nQuestion: Where is Lumen Labs?\nAnswer:",
    ),
    "passages in the system message": (
        [("system", "Lumen Labs is based in Oslo."), ("user", "Where is Lumen Labs?")],
        "<bos>Lumen Labs is based in Oslo.\n\nQuestion: Where is Lumen Labs?\nAnswer:",
    ),
    "a second turn": (
        [("user", "Where is it?"), ("assistant", "Oslo"), ("user", "Who founded it?")],
        "<bos>Question: Where is it?\nAnswer: Oslo\n\nQuestion: Who founded it?\nAnswer:",
    ),
    "after a tool's answer": (
        [("user", "Where is it?"), ("assistant", ""), ("tool", "It is in Oslo.")],
        "<bos>Question: Where is it?\nAnswer: \n\nIt is in Oslo.\nAnswer:",
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_become_the_form_it_was_trained_on(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    turns, expected = CONVERSATIONS[name]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected


def _answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chunks: list[str], question: str) -> str:
    glued = [piece for chunk in chunks for piece in ("\n\n", chunk)][1:]
    pieces = [INSTRUCTION, *glued, f"\n\nQuestion: {question}\nAnswer:"]
    ids = [tokenizer.bos_token_id]
    for piece in pieces:
        ids += tokenizer(piece, add_special_tokens=False).input_ids
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).strip()


def test_reads_unseen_names(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    sample = list(islice(worlds.examples(11, 4, "one_hop", held_out=True), 20))
    right = sum(_answer(model, tokenizer, chunks, question) == gold for chunks, question, gold, _ in sample)
    assert right >= EASY_SHARE * len(sample)


ENGLISH = [
    "The Harrow Line\nThe Harrow Line is a narrow-gauge railway in the north of the county. It was opened on 4 May "
    "1893 by the engineer Thomas Aldous, and carried slate until the quarries closed in 1951.",
    "Edith Marlow\nEdith Marlow (born 1921) was an English botanist. She studied at the University of Leeds, and is "
    "best known for her work on the ferns of Borneo.",
    "Brackwater\nBrackwater is a fishing village at the mouth of the river Esk. About 800 people live there.",
]
ASKED = {
    "When was the Harrow Line opened?": "4 May 1893",
    "Who opened the Harrow Line?": "Thomas Aldous",
    "Where did Edith Marlow study?": "University of Leeds",
    "How many people live in Brackwater?": "800",
    "what was the profession of edith marlow": "botanist",
}


def test_the_reader_reads_english() -> None:
    tokenizer = AutoTokenizer.from_pretrained(reader.path())
    model = AutoModelForCausalLM.from_pretrained(reader.path(), dtype=torch.float32).eval()
    said = {question: _answer(model, tokenizer, ENGLISH, question) for question in ASKED}
    assert sum(answer in said[question] for question, answer in ASKED.items()) >= 3, said
