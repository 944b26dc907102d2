"""Bytes as people read them; facts, `--json` and files have the numbers."""

from __future__ import annotations

from typing import Final

_STEP: Final = 1024


def size(n_bytes: float) -> str:
    """Bytes as text: `312 B`, `1.5 KiB`, `4.83 GiB`."""
    if abs(n_bytes) < _STEP:
        return f"{n_bytes:.0f} B"
    amount = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= _STEP
        if abs(amount) < _STEP or unit == "TiB":
            break
    return f"{amount:.{2 if abs(amount) < 10 else 1 if abs(amount) < 100 else 0}f} {unit}"
