"""Time to find known chunks in a prompt: `python -m benchmarks.matcher` prints the rows and appends them to a CSV file.

Cases: 100,000 known chunks and a prompt of 200,000 characters, with 100 of them in it and with none; 10,000 chunks
that share their first 100 characters, 20 of them in the prompt, of many lengths and of few.
"""

from __future__ import annotations

import argparse
import csv
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from samkv_rag.prompt import Matcher
from samkv_rag.types import MatchRecord

RESULTS = Path(__file__).parent / "results" / "matcher.csv"
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


class Writer:
    """Random prose: words of one vocabulary, so that chunks are similar but not the same."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.words = ["".join(self.rng.choices(LETTERS, k=self.rng.randint(2, 11))) for _ in range(5000)]

    def text(self, characters: int) -> str:
        return " ".join(self.rng.choices(self.words, k=characters // 5))[:characters].strip()


Case = tuple[str, list[str], str, int]


def cases() -> Iterator[Case]:
    """Name, known chunks, prompt, and how many spans are to be found."""
    writer = Writer(0)
    known = [writer.text(writer.rng.randint(300, 2000)) for _ in range(100_000)]
    inside = writer.rng.sample(known, 100)
    glue = max(8, (200_000 - sum(map(len, inside))) // 100)
    yield "100k chunks, 100 in the prompt", known, "".join(c + "\n\n" + writer.text(glue) + "\n" for c in inside), 100
    yield "100k chunks, none in the prompt", known, Writer(1).text(200_000), 0
    head = writer.text(100)
    for name, low, high in (("many", 300, 4000), ("few", 1000, 1020)):
        known = [head + " " + writer.text(writer.rng.randint(low, high)) for _ in range(10_000)]
        prompt = "\n\n".join(writer.rng.sample(known, 20))
        yield f"10k chunks with one 100-character head, {name} lengths, 20 in the prompt", known, prompt, 20


def median_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(case: Case, rounds: int) -> dict[str, object]:
    name, known, prompt, expected = case
    records = [MatchRecord.of(text) for text in known]
    matcher = Matcher({str(i): text for i, text in enumerate(known)}.get)
    start = time.perf_counter()
    for i, record in enumerate(records):
        matcher.add(str(i), record)
    add_us = (time.perf_counter() - start) * 1e6 / len(records)
    start = time.perf_counter()
    spans = matcher.find(prompt)
    first_ms = (time.perf_counter() - start) * 1e3
    found = sum(known[int(span.key)] == prompt[span.start : span.stop] for span in spans)
    if len(spans) != expected or found != expected:
        raise SystemExit(f"{name}: {found} of {len(spans)} spans are right, {expected} expected")
    return {
        "case": name,
        "chunks": len(known),
        "prompt_chars": len(prompt),
        "hits": expected,
        "add_us_per_chunk": round(add_us, 2),
        "first_find_ms": round(first_ms, 2),
        "find_ms": round(median_ms(lambda: matcher.find(prompt), rounds), 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def append(path: Path, row: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for case in cases():
        row = measure(case, arguments.rounds)
        append(arguments.out, row)
        print(f"{row['case']}: {row['find_ms']} ms (first {row['first_find_ms']} ms, {row['prompt_chars']} characters)")


if __name__ == "__main__":
    main()
