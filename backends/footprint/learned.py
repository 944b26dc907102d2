"""Corrections from real loads: bytes that engines were found to take, kept across restarts.

One small JSON file (mode 0600) per (file identity, arguments, llama.cpp build), as measurements are
kept, but in the state folder, because they cannot be computed again. Written whole and renamed into
place. An unreadable file, or one with impossible figures, is set aside with a line in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from backends.footprint.cache import JsonFolder, cache_key
from backends.foreign.json_shapes import table, text, whole
from backends.machine.files.folders import user_folder
from backends.machine.files.whole_files import is_there, write_whole
from budget.errors import LoadFailed
from budget.footprint import MOST_EXTRA_BYTES, MOST_TIMES, EngineArgs, Footprint, Placement

_FORMAT: Final = 1
_MAX_FILES: Final = 4096

HALF_LIFE_DAYS: Final = 7
"""The days after which a peak that was not seen again counts half."""
_DAY_S: Final = 24 * 3600
ROUNDING: Final = 0.02
"""Corrections ignore differences of 1%, so figures may differ by a little more."""


@dataclass(frozen=True, slots=True)
class LearnedBytes:
    """The learned bytes of one device.

    `estimated` was booked before any correction. `overhead` are the bytes beyond the buffers, estimated
    or, once the engine was warm, measured. `reported` are the engine's own figures of its buffers.
    `measured` is the most that its process took (0 where that is not known). `corrected` is booked from
    now on.
    """

    estimated_bytes: int
    overhead_bytes: int
    reported_bytes: int
    measured_bytes: int
    corrected_bytes: int

    def faded(self, share: float) -> LearnedBytes:
        """The figures with this share of what was measured beyond the estimate and the buffers."""
        certain = max(self.estimated_bytes, self.reported_bytes + self.overhead_bytes)

        def less(n_bytes: int) -> int:
            return min(n_bytes, certain + int(max(0, n_bytes - certain) * share))

        return replace(
            self,
            measured_bytes=less(self.measured_bytes),
            corrected_bytes=less(self.corrected_bytes),
        )

    @property
    def is_possible(self) -> bool:
        """Whether the figures are plausible for the estimate, and consistent.

        `corrected` is at most the highest of the measured and estimated bytes, and at least the buffers.
        """
        most = MOST_TIMES * self.estimated_bytes + MOST_EXTRA_BYTES
        seen = max(
            self.estimated_bytes, self.measured_bytes, self.reported_bytes + self.overhead_bytes
        )
        least = self.reported_bytes or self.estimated_bytes
        return max(
            self.corrected_bytes, self.measured_bytes, self.reported_bytes
        ) <= most and least * (1 - ROUNDING) <= self.corrected_bytes <= seen * (1 + ROUNDING)


@dataclass(frozen=True, slots=True)
class Learned:
    """The corrections of one file with one engine's arguments. `args` are those of `EngineArgs`.

    `at` is when an engine was last found to take these bytes, in UNIX seconds.
    """

    identity: str
    build: str
    args: Mapping[str, Any]
    devices: Mapping[str, LearnedBytes]
    at: int = 0

    def faded(self, now: float) -> Learned:
        """The corrections at a later time (UNIX seconds).

        What an engine took beyond its estimate and its buffers may have been one odd request's. It halves
        in each `HALF_LIFE_DAYS` in which no engine was found to take it.
        """
        days = max(0.0, now - self.at) // _DAY_S
        share = 0.5 ** (days / HALF_LIFE_DAYS)
        faded = {device: row.faded(share) for device, row in self.devices.items()}
        return replace(self, devices=faded)

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON-serialisable data; `from_json` is the inverse."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Learned:
        """The entry that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: the data is something else, or no engine takes such bytes.
        """
        if whole(table(data)["format"]) != _FORMAT:
            raise ValueError(f"format {data['format']}")
        devices = {}
        for device, row in table(data["devices"]).items():
            found = LearnedBytes(**{name: whole(amount) for name, amount in table(row).items()})
            if not found.is_possible:
                raise ValueError(f"{device}: these bytes cannot be: {dict(row)}")
            devices[device] = found
        return cls(
            text(data["identity"]),
            text(data["build"]),
            dict(table(data["args"])),
            devices,
            whole(data.get("at", 0)),
        )

    @property
    def is_possible(self) -> bool:
        """Whether the bytes of every device are plausible; others are never kept."""
        return all(row.is_possible for row in self.devices.values())

    def apply(self, placement: Placement) -> Placement:
        """The placement with the corrected bytes; the difference is spread over a footprint's parts."""
        parts = {
            device: _corrected(part, self.devices[device].corrected_bytes)
            if device in self.devices
            else part
            for device, part in placement.footprints.items()
        }
        if parts == placement.footprints:
            return placement
        note = "corrected by what it took when it was loaded"
        said = placement.reason.split("; ") if placement.reason else []
        reason = "; ".join([*said, note] if note not in said else said)
        return replace(placement, footprints=parts, source="engine", reason=reason)


def _corrected(part: Footprint, total_bytes: int) -> Footprint:
    """A footprint changed to `total_bytes`. The least certain part takes the difference first."""
    weights = min(part.weights_bytes, total_bytes)
    kv = min(part.kv_bytes, total_bytes - weights)
    compute = min(part.compute_bytes, total_bytes - weights - kv)
    return Footprint(weights, kv, compute, total_bytes - weights - kv - compute)


def default_folder() -> Path:
    """`$XDG_STATE_HOME/keepwarm/learned`, or `~/.local/state/...` where that is not set."""
    return user_folder("XDG_STATE_HOME", ".local/state") / "learned"


class LearnedStore:
    """Learned figures on disk. With a folder that cannot be used, none are kept.

    Peaks fade as time passes (`Learned.faded`). `clock` gives UNIX seconds.
    """

    def __init__(
        self, folder: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder or default_folder()
        self.clock = clock
        self._files = JsonFolder(self.folder, "what was learned of an engine's bytes")

    def get(self, identity: str, args: EngineArgs, build: str) -> Learned | None:
        """The corrections of that file with these arguments in this build, or None."""
        found = self._read(_name(cache_key(identity, args, build)))
        return found if found and found.identity == identity else None

    def put(self, args: EngineArgs, learned: Learned) -> None:
        """Keep corrections; the last writer wins."""
        self._files.write(
            _name(cache_key(learned.identity, args, learned.build)), learned.to_json()
        )

    def of_file(self, identity: str) -> list[Learned]:
        """All corrections of a file, for any arguments."""
        return [learned for _, learned in self._entries(identity)]

    def _entries(self, identity: str) -> list[tuple[Path, Learned]]:
        try:
            paths = sorted(self.folder.glob("*.json"))[:_MAX_FILES]
        except OSError:
            return []
        found = ((path, self._read(path.name)) for path in paths)
        return [(path, row) for path, row in found if row and row.identity == identity]

    def forget(self, identity: str) -> int:
        """Delete all corrections of a file; returns how many they were.

        Raises:
            LoadFailed: they cannot be deleted.
        """
        entries = self._entries(identity)
        try:
            for path, _ in entries:
                path.unlink(missing_ok=True)
            if entries:
                write_whole(self.marker(identity), str(self.clock()).encode())
        except OSError as error:
            raise LoadFailed(
                f"{self.folder}: what was learned cannot be deleted: {error.strerror}.",
                hint="Look at the rights of the folder.",
            ) from error
        return len(entries)

    def marker(self, identity: str) -> Path:
        """A file that changes when the corrections of a model's file are forgotten."""
        return self.folder / f"{identity}.forgotten"

    def holds(self, learned: Learned, args: EngineArgs) -> bool:
        """Whether corrections are still kept; they may have been forgotten."""
        return is_there(self.folder / _name(cache_key(learned.identity, args, learned.build)))

    def _read(self, name: str) -> Learned | None:
        found = self._files.read(name, Learned.from_json)
        return None if found is None else found.faded(self.clock())


def _name(key: str) -> str:
    return f"{key}.json"
