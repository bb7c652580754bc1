"""The wording of fictional worlds, from `wording.toml`: how facts are stated, how they are asked for, filler.

Statements hold `{s}` (the subject: a name, or "The company", "It", "She"), or `{p}` (the same as a possessive),
and one field per relation they state. Questions hold `{s}`, which is a name or, in two-hop questions, a phrase
such as "the maker of the Velox lamp".
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

ORG, PERSON, PRODUCT, PLACE = "org", "person", "product", "place"

WORDING: dict[str, dict[str, list[str]]] = tomllib.loads(
    files("samkv_rag.eval").joinpath("wording.toml").read_text(encoding="utf-8")
)
STATEMENTS, QUESTIONS, BRIDGES = WORDING["statements"], WORDING["questions"], WORDING["bridges"]
REVERSE, FILLER, PRONOUNS = WORDING["reverse"], WORDING["filler"], WORDING["pronouns"]
WORDS = WORDING["words"]


def texts() -> Iterator[str]:
    """All wording except names and the syllables that they are made of."""
    rest: list[Any] = [part for key, part in WORDING.items() if key not in ("names", "syllables")]
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            yield part
        else:
            rest += part.values() if isinstance(part, dict) else part


def prose(rng: random.Random) -> str:
    """A random sentence about nothing that any question asks for."""
    parts = WORDING["prose"]
    start = rng.choice(["", "", "", "", "In fact ", "Of course ", "At first ", "It is said that ", "Then "])
    if rng.random() < 0.5:
        body = f"{rng.choice(parts['people'])} {rng.choice(parts['verbs'])} {rng.choice(parts['things'])}"
    else:
        body = f"{rng.choice(parts['things'])} {rng.choice(parts['states'])}"
    joined = f"{start}{body} {rng.choice(parts['tails'])}".strip()
    if rng.random() < 0.2:
        joined += f", but {rng.choice(parts['things'])} {rng.choice(parts['states'])}"
    if rng.random() < 0.15:
        joined += f" and {rng.choice(parts['people'])} {rng.choice(parts['verbs'])} {rng.randint(2, 60)} of them"
    return joined[0].upper() + joined[1:] + "."
