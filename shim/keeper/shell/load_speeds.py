"""The most that loads read in a second on this machine, from each kind of storage: seen, not assumed.

The figures stay over the keeper's restarts. What a disk could do is not known before a load from it was
seen, so the first load is compared with nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import Final

from backends.machine.files.whole_files import read_shape, write_whole
from budget.errors import KeepwarmError
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")

FASTEST: Final = 1e13
"""Bytes a second that no storage reads: more than that is a clock's mistake."""
_FILE: Final = "load-speeds.json"
_MOST: Final = 64
"""Disks that are remembered."""


class LoadSpeeds:
    """The best speed of each kind of storage, in bytes a second."""

    def __init__(self) -> None:
        self._best: dict[str, float] = {}
        self._kept = True

    def saw(self, storage: str, speed: float) -> float | None:
        """Note the speed of a load; returns the best of it and those before, None if there were none."""
        if not 0.0 < speed < FASTEST:
            return self._best.get(storage)
        before = self._best.get(storage)
        if before is None and len(self._best) >= _MOST:
            return None
        if before is None or speed > before:
            self._best[storage] = speed
            self._kept = False
        return None if before is None else max(before, speed)

    def recall(self) -> None:
        """Take over what was kept; a file that cannot be read is set aside and said in the log."""
        try:
            found = read_shape(state_dir() / _FILE, "how fast loads were", _speeds)
        except KeepwarmError as error:
            LOG.warning("how fast loads were is not known: %s", error)
            return
        self._best = (found or {}) | self._best

    def remember(self) -> None:
        """Keep what was seen, where there is anything new; a failure is logged once for each."""
        if self._kept:
            return
        self._kept = True
        try:
            write_whole(state_dir() / _FILE, json.dumps(self._best).encode())
        except (OSError, KeepwarmError) as error:
            LOG.warning("how fast loads were could not be kept: %s", error)


def disk_of(paths: Iterable[str]) -> str:
    """The disk of a model's first file, as `8:1`; empty where it cannot be told."""
    for path in paths:
        try:
            device = os.stat(path).st_dev  # noqa: PTH116
        except (OSError, ValueError):
            continue
        return f"{os.major(device)}:{os.minor(device)}"
    return ""


def _speeds(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST:
        raise ValueError("no table of speeds")
    for speed in value.values():
        is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
        if not is_number or not 0.0 < speed < FASTEST:
            raise ValueError("a speed that cannot be")
    return {str(name): float(speed) for name, speed in value.items()}
