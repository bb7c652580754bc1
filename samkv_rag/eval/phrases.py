"""The wording of fictional worlds, from `wording.toml`: how facts are stated, how they are asked for, filler.

Statements hold `{s}` (the subject: a name, or "The company", "It", "She"), or `{p}` (the same as a possessive),
and one field per relation they state. Questions hold `{s}`, which is a name or, in two-hop questions, a phrase
such as "the maker of the Velox lamp".
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

ORG, PERSON, PRODUCT, PLACE = "org", "person", "product", "place"

WORDING: dict[str, dict[str, list[str]]] = tomllib.loads(
    files("samkv_rag.eval").joinpath("wording.toml").read_text(encoding="utf-8")
)
STATEMENTS, QUESTIONS, BRIDGES = WORDING["statements"], WORDING["questions"], WORDING["bridges"]
REVERSE, FILLER, PRONOUNS = WORDING["reverse"], WORDING["filler"], WORDING["pronouns"]
WORDS = WORDING["words"]
