"""The files of a model as an engine reads them: all shards, their sizes, their share in the page cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from backends.engine_process.surroundings import storage_of
from backends.gguf.header_limits import MAX_SHARDS
from backends.machine.files.page_cache import cached_fraction
from budget.errors import LoadFailed

_SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def model_files(model_path: Path) -> list[Path]:
    """The file itself, or all shards that there should be if it is the first of several by its name."""
    hit = _SHARD.search(model_path.name)
    if hit is None:
        return [model_path]
    stem, total = model_path.name[: hit.start()], hit.group(2)
    # No model has more shards; a file name can claim a hundred thousand.
    count = min(int(total), MAX_SHARDS)
    return [model_path.with_name(f"{stem}-{i + 1:05d}-of-{total}.gguf") for i in range(count)]


def file_sizes(model_path: Path) -> dict[Path, int]:
    """The bytes of each file of a model. A whole one may still have the name of a first shard.

    Raises:
        LoadFailed: one cannot be read.
    """
    own, *others = model_files(model_path)
    try:
        there = [path for path in others if path.exists()]
        return {path: path.stat().st_size for path in (own, *(others if there else ()))}
    except OSError as exc:
        raise LoadFailed(
            f"{exc.filename} cannot be read: {exc.strerror}.",
            hint="Check the model's path.",
            file=str(exc.filename),
        ) from exc


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's files at one moment: their bytes in all, and the share that the page cache has.

    `cached` is None where the kernel does not say.
    """

    total_bytes: int
    cached: float | None

    @classmethod
    def look(cls, model_path: Path) -> ModelFiles:
        """The files as they are now.

        Raises:
            LoadFailed: a file cannot be read.
        """
        sizes = file_sizes(model_path)
        return cls(sum(sizes.values()), cached_fraction(sizes))

    def storage(self, disk_bytes: int) -> Literal["cold", "staged"]:
        """Where a load that began at that moment, and read so many bytes from a disk, got its file from."""
        return storage_of(self.total_bytes, disk_bytes, self.cached)
