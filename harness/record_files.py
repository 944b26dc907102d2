"""Files of records: whether one can be kept, how it is read, whose it is, and its digest."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from shim import ConfigError, InvalidRequest, OutsideError
from shim.paths import NO_LOCKS, SHARED, FileLock, Holder, open_regular

_LOOK: Final = "See its folder's space and permissions"


def content_of(file: Path, begun_by: str) -> bytes:
    """All of a record's file.

    Args:
        file: where it is.
        begun_by: the call that begins one, for a reader who looks for a record that is not there.

    Raises:
        InvalidRequest: the file is not there.
        OutsideError: it cannot be read.
    """
    try:
        with open_regular(file) as content:
            return content.read()
    except FileNotFoundError as error:
        raise InvalidRequest(
            f"{file} is not there: no run has been recorded in it.",
            hint=f"`{begun_by}` begins one.",
            file=str(file),
        ) from error
    except OSError as error:
        raise OutsideError(
            f"The record {file} cannot be read: {error.strerror or error}.", file=str(file)
        ) from error


@contextmanager
def owned(file: Path) -> Iterator[None]:
    """A record is this run's alone, until the end of the context or of the process.

    The lock is a file beside the record, because a record may be replaced by each save. Where a file system
    has no locks, nothing happens.

    Raises:
        InvalidRequest: another run works with it. Fact `pid`: its process, None where it is not known.
        OutsideError: no lock can be made there.
    """
    target = behind_links(file)
    # A process number alone would be another process on another machine that shares the folder.
    note = Holder.this_process(Path(platform.node()))
    with FileLock(target.with_name(f".{target.name}.lock"), mode=SHARED, note=note) as lock:
        if not _is_free(lock, file):
            holder = lock.holder()
            raise InvalidRequest(
                f"Another run works with {file}" + (f": {holder}." if holder.pid else "."),
                hint="Wait for its end; what it finished can be gone on with then.",
                file=str(file),
                pid=holder.pid,
            )
        try:
            yield
        finally:
            # Not where a child that was forked ends: the lock is its parent's.
            if lock.still_there():
                with suppress(OSError):
                    lock.path.unlink()


def tidy(file: Path) -> None:
    """Remove the lock that a killed run left beside a record which has ended: no later run takes it."""
    target = behind_links(file)
    if is_there(target.with_name(f".{target.name}.lock")):
        with suppress(InvalidRequest, OutsideError), owned(file):  # it may be at work after all
            pass


def _is_free(lock: FileLock, file: Path) -> bool:
    try:
        return lock.try_acquire()
    except ConfigError as error:
        if error.facts["errno"] in NO_LOCKS:
            with suppress(OSError):
                lock.path.unlink()
            return True
        raise OutsideError(
            f"No other run can be kept from {file}: {error.message}",
            hint="See its folder's space and permissions, or name another file. Nothing was run.",
            file=str(file),
        ) from error


def is_there(file: Path) -> bool:
    """Whether a file has this name."""
    try:
        return file.is_file()
    except OSError:
        return False


def check_writable(file: Path) -> None:
    """Find out whether a record can be kept there before anything is produced for it.

    Raises:
        OutsideError: the folder is not there or cannot be written, or the name is that of a folder or of a
            device.
    """
    target = behind_links(file)
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{file} is a folder")
        if target.exists() and not target.is_file():
            raise OSError(f"{file} is no regular file")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise nothing_kept(file, error) from error


def make_folder(folder: Path) -> None:
    """The folder of many records.

    Raises:
        OutsideError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise nothing_kept(folder, error) from error


def nothing_kept(place: Path, error: Exception) -> OutsideError:
    """The error of a file or folder of records that cannot be written, before anything was run."""
    why, make = why_not(place, error)
    return OutsideError(
        f"{place} cannot be written, so that no record would be kept: {why}.",
        hint=f"{make or _LOOK}, or name another file. Nothing was run.",
        file=str(place),
    )


def why_not(place: Path, error: Exception) -> tuple[str, str]:
    """What stands in the way of a file that cannot be made; and what to do, where that is plain."""
    folder = behind_links(place).parent
    if not isinstance(error, OSError):  # SQLite says of all of these that it cannot open a file
        try:
            (folder / "..").stat()  # through it, which is an error also where a file has its name
        except OSError as found:
            error = found
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"there is no folder {folder}", "Make the folder"
    # Not the error's own text: that of a system call names a file for a while, which no reader knows.
    return getattr(error, "strerror", None) or str(error), ""


def behind_links(file: Path) -> Path:
    """The file that a link leads to: it is what is written, and the link stays."""
    return Path(os.path.realpath(file))


def digest_of(data: Any) -> str:
    """The SHA-256 of JSON data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
