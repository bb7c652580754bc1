"""Pack the real text for a run elsewhere: `python -m training.pack [large.toml]`.

Reads the files that the configuration names, leaves out what evaluation uses, and writes one file, `library.xz`, and
the tokenizer, so that training needs neither the folder nor minutes of reading.
"""

from __future__ import annotations

import lzma
import pickle
import random
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from training.facts import read_facts
from training.linking import links
from training.pages import LONGEST, read_beginnings, read_paragraphs
from training.paths import paths
from training.real import Exclusion, passage, read_questions
from training.tokenizer import train_tokenizer
from training.train import read_config

CONFIG = Path(__file__).with_name("large.toml")


def read_all(options: dict[str, Any]) -> dict[str, Any]:
    """The questions, beginnings of pages and paragraphs that the `[real]` table of a configuration names; and what
    evaluation asks, so that no question generated later is one of those."""
    folder = Path(options["folder"])
    exclude = Exclusion.of(folder / name for name in options["evaluation"])

    def files(kind: str) -> list[Path]:
        return sorted(file for pattern in options[kind] for file in folder.glob(pattern))

    beginnings = read_beginnings(files("beginnings"), exclude)
    pages = {page.title: (page.text, read_facts(page.title, page.text)) for page in beginnings}
    return {
        "questions": [
            (item.text, item.answer, item.passages) for item in read_questions(files("questions"), exclude, LONGEST)
        ],
        "beginnings": [(title, text, list(map(astuple, facts))) for title, (text, facts) in pages.items()],
        "links": [(link.title, astuple(link.fact), link.target) for link in links(pages)],
        "excluded": sorted(exclude.questions),
        "paragraphs": [(page.title, page.text) for page in read_paragraphs(files("paragraphs"), exclude)],
    }


def texts(packed: dict[str, Any]) -> Iterator[str]:
    """A sample of the text, for the tokenizer."""
    rng = random.Random("tokenizer")
    for kind, count in (("beginnings", 40_000), ("paragraphs", 8_000)):
        yield from (passage(*page[:2]) for page in rng.sample(packed[kind], min(count, len(packed[kind]))))
    yield from (f"\n\nQuestion: {text}\nAnswer: {answer}" for text, answer, _ in packed["questions"])


def main(path: Path = CONFIG) -> None:
    """Write the pack and print what is in it."""
    config = read_config(path)
    found = read_all(config["real"])
    target = Path(config["folder"]) / "library.xz"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(pickle.dumps(found), preset=6))
    train_tokenizer(target.parent / "tokenizer", config["vocab"], config["tokenizer_worlds"], texts(found))
    print({kind: len(items) for kind, items in found.items()}, f"{target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(*paths(__doc__))
