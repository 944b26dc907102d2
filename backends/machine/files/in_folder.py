"""A folder that was named where a model's file is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SHOWN: Final = 3


def in_folder(path: Path) -> str:
    """What to do about it: its first GGUF files by name."""
    try:
        names = sorted(one.name for one in path.glob("*.gguf"))
    except OSError:
        names = []
    if not names:
        return "Name a GGUF file; this folder has none."
    more = ", ..." * (len(names) > _SHOWN)
    return f"Name the file in it: {', '.join(names[:_SHOWN])}{more}."
