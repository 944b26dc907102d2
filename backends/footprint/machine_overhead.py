"""The engine overhead that was measured on this machine, kept beside the footprints on disk.

One file by llama.cpp build and hardware: a cache folder may be shared by several machines.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from backends.footprint.cache import ENTRY_LIMIT_BYTES, default_folder
from backends.foreign.json_shapes import table, whole
from backends.llama.binaries import build_id, find_binary
from backends.machine.files.whole_files import read_shape, write_whole
from backends.measure.hardware import hardware, hardware_key
from budget.errors import ConfigError
from budget.memory.overhead import DEFAULT_OVERHEAD, OverheadModel

_MOST_BYTES: Final = 8 << 30
"""An upper bound for a stored coefficient: no process without a model, layer, token or slot takes more."""


def stored_overhead(folder: Path | None = None) -> OverheadModel:
    """The overhead measured on this machine with the installed llama.cpp, else the default."""
    return measured_overhead(folder) or DEFAULT_OVERHEAD


def measured_overhead(folder: Path | None = None) -> OverheadModel | None:
    """The overhead measured on this machine with the installed llama.cpp, or None."""
    try:
        build = build_id(find_binary("llama-server"))
        # Naming the hardware asks the GPUs' driver, so it is only done if a measurement exists.
        if not any(_folder(folder).glob(f"overhead-{build}-*.json")):
            return None
    except (ConfigError, OSError):
        return None
    path, what = _path(folder, build), "the measured overhead of engines"
    return read_shape(path, what, _overhead, ENTRY_LIMIT_BYTES)


def _overhead(value: object) -> OverheadModel:
    data = table(value)
    return OverheadModel(
        **{f.name: whole(data[f.name], 0, _MOST_BYTES) for f in fields(OverheadModel)}
    )


def store_overhead(found: OverheadModel, folder: Path | None = None) -> Path:
    """Keep a measurement for this machine and the llama.cpp that is installed; returns its file.

    Raises:
        ConfigError: llama-server is not installed.
        OSError: the folder cannot be written.
    """
    path = _path(folder, build_id(find_binary("llama-server")))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(found)).encode())
    return path


def _folder(folder: Path | None) -> Path:
    return folder or default_folder().parent


def _path(folder: Path | None, build: str) -> Path:
    return _folder(folder) / f"overhead-{build}-{hardware_key(hardware())}.json"
