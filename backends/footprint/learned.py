"""What engines were found to take when they really loaded: kept across restarts.

One small JSON file (mode 0600) per (file identity, arguments, llama.cpp build), as measurements are
kept, but in the state folder: nothing else can make them again. Written whole and renamed into
place. A file that cannot be read is said in `warnings` and dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from backends.footprint.cache import cache_key, write_whole
from budget.footprint import EngineArgs, Footprint, Placement

_FORMAT: Final = 1
_MAX_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class LearnedBytes:
    """One device's story, in bytes.

    `estimated` was booked before anything was learned; `overhead` is what an engine takes beyond its
    buffers, as estimated or, once it was warm, as measured; `reported` is what the engine said of its
    buffers, `measured` the most its process took (0 where that is not to be had); `corrected` is
    booked from now on.
    """

    estimated_bytes: int
    overhead_bytes: int
    reported_bytes: int
    measured_bytes: int
    corrected_bytes: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one file with one engine's arguments. `args` are those of `EngineArgs`."""

    identity: str
    build: str
    args: Mapping[str, Any]
    devices: Mapping[str, LearnedBytes]

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON-serialisable data; `from_json` is the inverse."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Learned:
        """The entry that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: the data is something else.
        """
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}")
        devices = {}
        for device, row in data["devices"].items():
            if any(type(amount) is not int or amount < 0 for amount in row.values()):
                raise ValueError(f"{device} is not counted in bytes")
            devices[str(device)] = LearnedBytes(**row)
        return cls(str(data["identity"]), str(data["build"]), dict(data["args"]), devices)

    def apply(self, placement: Placement) -> Placement:
        """The placement with the corrected bytes booked; the parts take the difference up."""
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
    """The parts of a footprint that takes `total_bytes`: what is least known gives way first."""
    weights = min(part.weights_bytes, total_bytes)
    kv = min(part.kv_bytes, total_bytes - weights)
    compute = min(part.compute_bytes, total_bytes - weights - kv)
    return Footprint(weights, kv, compute, total_bytes - weights - kv - compute)


def default_folder() -> Path:
    """`$XDG_STATE_HOME/keepwarm/learned`, or `~/.local/state/...` where that is not set."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "keepwarm" / "learned"


class LearnedStore:
    """Learned figures on disk. A folder that cannot be used means that nothing is remembered.

    `warnings` collects what was found broken.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.warnings: list[str] = []

    def get(self, identity: str, args: EngineArgs, build: str) -> Learned | None:
        """What is known of that file with these arguments in this build."""
        found = self._read(self._path(cache_key(identity, args, build)))
        return found if found and found.identity == identity else None

    def put(self, args: EngineArgs, learned: Learned) -> None:
        """Remember; the last writer wins."""
        path = self._path(cache_key(learned.identity, args, learned.build))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, json.dumps(learned.to_json()))
        except OSError as error:
            self.warnings.append(f"{self.folder} cannot be written: {error.strerror}.")

    def of_file(self, identity: str) -> list[Learned]:
        """Everything known of a file, whatever the arguments."""
        try:
            paths = sorted(self.folder.glob("*.json"))[:_MAX_FILES]
        except OSError:
            return []
        found = (self._read(path) for path in paths)
        return [learned for learned in found if learned and learned.identity == identity]

    def _read(self, path: Path) -> Learned | None:
        try:
            return Learned.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warnings.append(f"{path} cannot be read: {error.strerror}.")
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.warnings.append(f"what was learned in {path} is damaged and was dropped.")
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
