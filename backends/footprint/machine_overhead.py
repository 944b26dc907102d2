"""The engine overhead that was measured on this machine, kept beside the footprints on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.footprint.cache import default_folder, write_whole
from backends.llama.binaries import build_id, find_binary
from budget.errors import ConfigError
from budget.estimate.overhead import DEFAULT_OVERHEAD, OverheadModel


def stored_overhead(folder: Path | None = None) -> OverheadModel:
    """What `calibrate` measured here with the llama.cpp that is installed, else the default."""
    try:
        path = _path(folder)
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return OverheadModel(**{key: int(value) for key, value in data.items()})
    except (ConfigError, OSError, ValueError, TypeError, AttributeError):
        return DEFAULT_OVERHEAD


def store_overhead(found: OverheadModel, folder: Path | None = None) -> Path:
    """Keep a measurement for the llama.cpp that is installed; returns its file.

    Raises:
        ConfigError: llama-server is not installed.
        OSError: the folder cannot be written.
    """
    path = _path(folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(found)))
    return path


def _path(folder: Path | None) -> Path:
    return (
        folder or default_folder().parent
    ) / f"overhead-{build_id(find_binary('llama-server'))}.json"
