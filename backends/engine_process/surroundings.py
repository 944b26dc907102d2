"""What the process of an engine finds: its files, its working folder, the GPUs that it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from backends.machine.bounded_questions import asked
from backends.machine.files.page_cache import cached_fraction
from backends.machine.gpus import VARIABLE, gpu_uuids
from budget.errors import LoadFailed

_STAGED: Final = 0.9


async def gpu_variables(gpus: Sequence[int]) -> dict[str, str]:
    """It sees the GPUs that it is booked on, under the numbers from 0, and no others."""
    if not gpus:
        return {VARIABLE: ""}
    uuids = await asked(gpu_uuids)
    return {VARIABLE: ",".join(uuids[n] for n in gpus if n < len(uuids))}


def folder_or_root(path: Path) -> Path:
    """A working folder that is there; else the root folder, and the program says what is missing."""
    return path if path.is_dir() else Path("/")


def sizes_of(files: tuple[Path, ...], hint: str) -> dict[Path, int]:
    """The bytes of the files, those in folders included.

    Args:
        files: files and folders.
        hint: what to do where one is not there.

    Raises:
        LoadFailed: one is not there.
    """
    found: dict[Path, int] = {}
    for path in files:
        try:
            inside = (
                [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
            )
            found.update({each: each.stat().st_size for each in inside})
        except OSError as error:
            raise LoadFailed(
                f"{path} cannot be read: {error.strerror}.",
                hint=hint,
                file=str(path),
            ) from error
    return found


async def cached_share(sizes: Mapping[Path, int]) -> float | None:
    """The share of the files that is in the page cache; None where that is not known."""
    return await asked(cached_fraction, sizes)


def storage_of(file_bytes: int, disk_bytes: int, cached: float | None) -> Literal["cold", "staged"]:
    """Where a load has read its files, by what it read from disks and what was cached before.

    Where the page cache's share is not known, the bytes read from disks decide alone.
    """
    from_disk = disk_bytes > (1 - _STAGED) * file_bytes
    was_absent = cached is not None and cached < _STAGED
    return "cold" if file_bytes and (from_disk or was_absent) else "staged"
