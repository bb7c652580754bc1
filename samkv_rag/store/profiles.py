"""`models/`: what was measured for each model, by its fingerprint; one small file each, checked when it is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samkv_rag.options import Exponent, Share, Vicinity, Weight, fits
from samkv_rag.store.errors import StoreReadOnly
from samkv_rag.store.files import PendingFile, make_folder, sentences, sync_folder
from samkv_rag.store.reading import only_read

FOLDER = "models"
VERSION = 2
NUMBERS: dict[str, Any] = {
    "early": Exponent, "sees": Share, "wide": Share, "answer_weight": Weight, "vicinity": Vicinity
}  # fmt: skip
"""What a profile may hold besides the layers."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What was measured for a model; None, or no layers: not measured. `layers`: the selection layers chosen for it.
    `measured`: how, for people to read. `wide`: the share of its layers on which recomputed tokens need to attend to
    all entries; `sees`: the share of the rest that they need to attend to on the others. When it is decided what is
    kept, `vicinity`: how much a token's surroundings count, and `answer_weight`: how often the row that gives the
    answer's first token counts. `early`: how strongly tokens early in a chunk take priority in recomputing."""

    layers: tuple[int, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    wide: float | None = None
    vicinity: float | None = None
    sees: float | None = None
    answer_weight: float | None = None
    early: float | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """What was chosen, without how."""
        return {"layers": list(self.layers), **{name: getattr(self, name) for name in NUMBERS}}


class Profiles:
    """The profiles of a store; without a folder they are gone with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._held: dict[str, ModelProfile] = {}

    def put(self, fingerprint: str, profile: ModelProfile) -> None:
        """Keep `profile`, replacing any earlier one; StoreError, StoreFull."""
        if self._folder is None:
            self._held[fingerprint] = profile
            return
        facts = {"version": VERSION, "fingerprint": fingerprint, **asdict(profile)}
        if only_read(self._folder.parent):
            raise StoreReadOnly(self._folder.parent)
        with sentences(self._folder.parent):
            make_folder(self._folder)
            with PendingFile(self._folder) as file:
                file.write(json.dumps({**facts, "check": _check(facts)}, indent=1).encode())
                file.sync()
                file.publish(self._path(fingerprint))
            sync_folder(self._folder)

    def get(self, fingerprint: str) -> ModelProfile | None:
        """The profile of the model with this fingerprint, None if there is none; ValueError for a damaged file."""
        if self._folder is None:
            return self._held.get(fingerprint)
        try:
            written = self._path(fingerprint).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self._path(fingerprint)} cannot be read ({error.strerror})") from error
        profile = _parsed(written, fingerprint)
        if profile is None:
            raise ValueError(f"{self._path(fingerprint)} is damaged or of another version")
        return profile

    def _path(self, fingerprint: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{fingerprint}.json"


def _parsed(written: bytes, fingerprint: str) -> ModelProfile | None:
    try:
        facts = json.loads(written)
        sound = facts.pop("check") == _check(facts) and facts["version"] == VERSION
        layers, measured = tuple(facts["layers"]), dict(facts["measured"])
        numbers = {name: facts.get(name) for name in NUMBERS}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = layers and all(isinstance(layer, int) and layer >= 0 for layer in layers)
    fitting = all(fits(numbers[name], kind | None) for name, kind in NUMBERS.items())
    right = sound and whole and fitting and facts["fingerprint"] == fingerprint
    return ModelProfile(layers, measured, **numbers) if right else None


def _check(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())
