"""Deletes unfinished state files of earlier processes when a keeper starts."""

from __future__ import annotations

import contextlib
from pathlib import Path

from backends.footprint.cache import default_folder
from backends.machine.files.whole_files import sweep_leftovers
from budget.errors import KeepwarmError
from shim.keeper.catalog.corrections import FOLDER
from shim.paths import state_dir


def state_folders() -> list[Path]:
    """The folders that small files of state are written to, but for saved KV state (`kv_files`)."""
    footprints = default_folder()
    found = [footprints.parent, footprints]
    with contextlib.suppress(KeepwarmError):
        found += [state_dir(), state_dir() / FOLDER]
    return found


def sweep_state(runtime: Path) -> None:
    """Delete unfinished files of processes that are gone, and damaged ones that were set aside long ago.

    `runtime` is the keeper's folder, with the configuration in force; it is swept, too.
    """
    for folder in (*state_folders(), runtime):
        sweep_leftovers(folder)
