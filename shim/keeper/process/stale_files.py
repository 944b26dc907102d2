"""What earlier processes left unfinished among the files of state, swept when a keeper starts."""

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

    Also in the keeper's folder, where the configuration in force is.
    """
    for folder in (*state_folders(), runtime):
        sweep_leftovers(folder)
