"""What users call files and folders."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(name: str | os.PathLike[str]) -> Path:
    """The path that a name stands for, `~` being a home. That of nobody (`~nobody`) stands for itself, and is not found
    then, where `Path.expanduser` would raise RuntimeError."""
    return Path(os.path.expanduser(name))
