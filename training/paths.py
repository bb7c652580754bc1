"""The files and folders that a command is given."""

from __future__ import annotations

import argparse
from pathlib import Path


def paths(about: str | None, least: int = 0) -> list[Path]:
    """The command's arguments; `--help` shows what it is `about`, and so does an error if there are fewer than
    `least`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="see above")
    found: list[Path] = parser.parse_args().paths
    if len(found) < least:
        parser.error(f"{least} needed: {about}")
    return found
