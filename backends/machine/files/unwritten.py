"""Folders that cannot be written now (a full disk, a lost permission), since when, and why."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_PROBE_BYTES: Final = 16384
"""The size of a test file by which a folder counts as writable: more than a small state file has."""


@dataclass(slots=True)
class _Unwritten:
    since: float
    failures: int
    text: str


class UnwrittenFolders:
    """The unwritable folders of one process. Writers report to it; `rows` lists them."""

    def __init__(self) -> None:
        self._folders: dict[Path, _Unwritten] = {}

    def failed(self, folder: Path, error: OSError) -> None:
        """A file could not be written in a folder."""
        text = error.strerror or str(error)
        row = self._folders.setdefault(folder, _Unwritten(time.monotonic(), 0, text))
        row.failures, row.text = row.failures + 1, text

    def worked(self, folder: Path) -> None:
        """A file was written in a folder."""
        if self._folders:
            self._folders.pop(folder, None)

    def forget(self) -> None:
        """Begin anew."""
        self._folders.clear()

    @contextlib.contextmanager
    def noting(self, folder: Path) -> Iterator[None]:
        """Inside, something is written to a folder."""
        try:
            yield
        except OSError as error:
            self.failed(folder, error)
            raise
        self.worked(folder)

    def try_again(self) -> None:
        """Forget the folders that take a file again, and those that are gone."""
        for folder in list(self._folders):
            try:
                _probe(folder)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    self.worked(folder)
            else:
                self.worked(folder)

    def rows(self) -> list[dict[str, Any]]:
        """The folders, JSON-serialisable, as the recurring tasks of a keeper that fail."""
        now = time.monotonic()
        return [
            {
                "task": f"writing in {folder}",
                "failing_s": now - row.since,
                "failures": row.failures,
                "text": row.text,
            }
            for folder, row in self._folders.items()
        ]


UNWRITTEN: Final = UnwrittenFolders()


def _probe(folder: Path) -> None:
    """Write a file and delete it again.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f".probe.{os.getpid()}-0.new"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, bytes(_PROBE_BYTES)) < _PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()
