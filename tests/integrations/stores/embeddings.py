"""Words hashed into a few numbers: texts that share words lie close, and every text that is embedded is counted."""

from __future__ import annotations

import re
import zlib

SIZE = 64


class WordVectors:
    """Counts what it embeds."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def of(self, text: str) -> list[float]:
        """A unit vector of `SIZE` numbers."""
        self.embedded.append(text)
        vector = [0.0] * SIZE
        for word in re.findall(r"\w{3,}", text.lower()):
            vector[zlib.crc32(word.encode()) % SIZE] += 1.0
        length = sum(value * value for value in vector) ** 0.5 or 1.0
        return [value / length for value in vector]
