"""What must hold after each round, while no caller holds anything: everything answers, nothing is left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from _common import say

from backends.machine.files.whole_files import is_leftover
from campaign.models import NAMES
from campaign.place import Place, answer_of
from campaign.tally import Tally
from shim import KeepwarmError, Shim
from shim.cli.console.running import ask_running

SETTLES_WITHIN_S = 20.0
SPARE_DESCRIPTORS = 3
"""More than at the first check, before a descriptor counts as leaked: a log that was opened since, say."""
UNFINISHED = ("**/order-*", "**/*.new", "**/yield-*")


class Checks:
    """The checks of one campaign, against what its keeper held before the first fault.

    Args:
        place: where the campaign happens.
        tally: what counts what is found.
    """

    def __init__(self, place: Place, tally: Tally) -> None:
        self._place, self._tally = place, tally
        self._descriptors: int | None = None
        self._of_callers: dict[int, int] = {}
        self._known: set[str] = set()

    def after_round(self) -> None:
        """All of them. The first call, before any fault, is what later ones compare with."""
        self._every_model_answers()
        self._books()
        for name in NAMES:
            self._place.unload(name)
        if not self._settled(lambda: not self._in_use()):
            self._bad("orphans", f"engines stay: {self._in_use()}")
        if not self._settled(lambda: not self._place.engines()):
            self._bad("orphans", f"processes of no engine: {_described(self._place.engines())}")
        self._keepers_descriptors()
        self._files()

    def at_end(self) -> None:
        """After the keeper was told to stop: no process and no socket may be left."""
        if not self._settled(lambda: self._place.keeper_pid() is None):
            self._bad("orphans", "the keeper does not end")
        if not self._settled(lambda: not self._place.engines()):
            self._bad("orphans", f"processes: {_described(self._place.engines())}")
        left = [path for path in self._place.runtime.glob("*") if path.is_socket()]
        if left:
            self._bad("leaks", f"sockets: {left}")

    def caller_told(self, pid: int, descriptors: int) -> None:
        """What a caller holds after a round with its `Shim` closed; the first time is what counts."""
        before = self._of_callers.setdefault(pid, descriptors)
        if descriptors > before + SPARE_DESCRIPTORS:
            self._bad("leaks", f"caller {pid} has {descriptors} descriptors, and had {before}")

    def _bad(self, count: str, what: str, number: int = 1) -> None:
        say(f"{count}: {what}")
        setattr(self._tally, count, getattr(self._tally, count) + number)

    def _settled(self, holds: Callable[[], bool]) -> bool:
        until = time.monotonic() + SETTLES_WITHIN_S
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _every_model_answers(self) -> None:
        for name in NAMES:
            try:
                with Shim(self._place.config) as shim:
                    answer_of(shim, name)
            except KeepwarmError as error:
                self._bad("untyped", f"{name} does not answer: {type(error).__name__}: {error}")

    def _status(self) -> dict[str, Any]:
        with contextlib.suppress(KeepwarmError):
            return ask_running("status", runtime=self._place.runtime) or {}
        return {}

    def _in_use(self) -> list[str]:
        rows = self._status().get("engines", [])
        return [row["id"] for row in rows if row["state"] not in ("absent", "failed")]

    def _books(self) -> None:
        """No lease, no engine half-way, and the devices' figure is the engines'."""
        found: list[Any] = []

        def balanced() -> bool:
            status = self._status()
            rows = status.get("engines", [])
            leases = [lease for row in rows for lease in row["leases"]]
            booked = sum(sum(row["bytes"].values()) for row in rows)
            reserved = sum(device["reserved_bytes"] for device in status.get("devices", []))
            half = [row["id"] for row in rows if row["state"] in ("loading", "evicting")]
            found[:] = [leases, half, booked - reserved, status.get("keeper", {}).get("faults")]
            return bool(status) and not (leases or half or booked != reserved)

        if not self._settled(balanced):
            self._bad("ghost_leases", f"leases, half-way, unbalanced bytes, faults: {found}")
        if found[3]:
            say(f"faults that the keeper counted: {found[3]}")

    def _keepers_descriptors(self) -> None:
        held: list[str] = []

        def few() -> bool:
            held[:] = sorted(_descriptors(self._place.keeper_pid()))
            if self._descriptors is None:
                self._descriptors = len(held)
            return len(held) <= self._descriptors + SPARE_DESCRIPTORS

        if not self._settled(few):
            more = len(held) - (self._descriptors or 0)
            self._bad("leaks", f"{more} descriptors of the keeper: {held}", more)

    def _files(self) -> None:
        left: list[Path] = []

        def none() -> bool:
            left[:] = self._left_files()
            return not left

        if not self._known:
            self._known = {path.name for path in self._place.runtime.glob("*")}
        if not self._settled(none):
            self._bad("leaks", f"files: {[str(path) for path in left]}", len(left))
            for path in left:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _left_files(self) -> list[Path]:
        place = self._place
        of_engines = [*place.runtime.glob("e-*"), *(place.root / "tmp").glob("*")]
        if place.is_private:
            of_engines += Path("/dev/shm").glob("*")
        unfinished = (
            path
            for folder in (place.runtime, place.root / "state", place.root / "kv")
            for pattern in UNFINISHED
            for path in folder.glob(pattern)
        )
        return of_engines + [path for path in unfinished if not _is_swept_later(path)]


def _descriptors(pid: int | None) -> Iterator[str]:
    if pid is not None:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(entry.readlink())


def _described(pids: list[int]) -> list[str]:
    told = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            told.append(f"{pid} {process.status()} {' '.join(process.cmdline())[:200]}")
    return told


def _is_swept_later(path: Path) -> bool:
    """Whether a later keeper deletes what a killed one had begun to write."""
    later = time.time() + 3600.0
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        return any(entry.name == path.name and is_leftover(entry, later) for entry in entries)
    return False
