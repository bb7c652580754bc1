"""How people ask: the tables of `wordings.toml`, each with several wordings for every relation."""

from __future__ import annotations

import tomllib
from pathlib import Path

_TABLES: dict[str, dict[str, list[str]]] = tomllib.loads(Path(__file__).with_name("wordings.toml").read_text("utf-8"))
ASKED, INVERSE, HOPS = _TABLES["asked"], _TABLES["inverse"], _TABLES["hops"]
FIRST, LAST, SAME, LINKED = (_TABLES[name] for name in ("first", "last", "same", "linked"))
_HUMAN = (
    "director producer author starring founder architect composer spouse father mother child sibling winner host "
    "members based_on"
)
HUMAN_HOPS = frozenset(_HUMAN.split())  # relations whose value is a person
