"""The engine overhead that was measured on this machine, kept beside the footprints on disk.

One file by llama.cpp build and hardware: a cache folder may be shared by several machines.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.footprint.cache import default_folder, write_whole
from backends.hardware import hardware, hardware_key
from backends.llama.binaries import build_id, find_binary
from budget.errors import ConfigError
from budget.estimate.overhead import DEFAULT_OVERHEAD, OverheadModel


def stored_overhead(folder: Path | None = None) -> OverheadModel:
    """What was measured on this machine with the llama.cpp that is installed, else the default."""
    return measured_overhead(folder) or DEFAULT_OVERHEAD


def measured_overhead(folder: Path | None = None) -> OverheadModel | None:
    """What was measured on this machine with the llama.cpp that is installed, if it was."""
    try:
        build = build_id(find_binary("llama-server"))
        # What the hardware is takes the GPUs' driver: asked only where something was measured.
        if not any(_folder(folder).glob(f"overhead-{build}-*.json")):
            return None
        data: dict[str, Any] = json.loads(_path(folder, build).read_text(encoding="utf-8"))
        return OverheadModel(**{key: int(value) for key, value in data.items()})
    except (ConfigError, OSError, ValueError, TypeError, AttributeError):
        return None


def store_overhead(found: OverheadModel, folder: Path | None = None) -> Path:
    """Keep a measurement for this machine and the llama.cpp that is installed; returns its file.

    Raises:
        ConfigError: llama-server is not installed.
        OSError: the folder cannot be written.
    """
    path = _path(folder, build_id(find_binary("llama-server")))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(found)))
    return path


def _folder(folder: Path | None) -> Path:
    return folder or default_folder().parent


def _path(folder: Path | None, build: str) -> Path:
    return _folder(folder) / f"overhead-{build}-{hardware_key(hardware())}.json"
