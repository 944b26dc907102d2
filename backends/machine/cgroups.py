"""The control groups that a process is in, and the figures that their files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Control groups v1 say "no limit" with the largest multiple of the page size.
_NO_LIMIT: Final = 1 << 60


def read_text(path: str) -> str | None:
    """A small file of `/proc` or `/sys`, or `None` when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def parse_cgroup_paths(text: str, controller: str = "memory") -> tuple[str | None, str | None]:
    """A process's control group paths (v2, and v1 of one controller) from `/proc/self/cgroup`."""
    unified: str | None = None
    first: str | None = None
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            unified = path
        elif controller in controllers.split(","):
            first = path
    return unified, first


def parse_figure(text: str | None) -> int | None:
    """The figure in a control group's file; `None` when there is none (`max`)."""
    if text is None or not text.strip().isdecimal():
        return None
    value = int(text)
    return value if value < _NO_LIMIT else None
