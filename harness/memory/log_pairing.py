"""Whether a write-ahead log belongs to the file that it lies beside, which SQLite does not ask.

A killed program leaves its log, and SQLite puts what is in it into whatever file has the name by then. So
every change of a memory is numbered in the file's first page (in `user_version`, above the version of the
schema), which the log then has as well. A log belongs to a file whose number is one of its own, or the one
before.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from shim import OutsideError

VERSION_BITS: Final = 8
_NUMBERS: Final = 1 << 23
"""`user_version` is a signed number of 32 bits."""
_FIRST_NUMBERS: Final = 1 << 15
_STEP: Final = _NUMBERS // _FIRST_NUMBERS
"""First numbers are multiples of this, so that a log that begins with one is known for a new memory's."""
_LOOKS: Final = 8
"""Looks at a log that another program is emptying again and again."""
_HEADER_BYTES, _FRAME_BYTES, _AT_VERSION = 32, 24, 60


def version_of(connection: sqlite3.Connection) -> int:
    """How many migrations the file has had."""
    found = _user_version(connection)
    return found if found < 0 else found % (1 << VERSION_BITS)


def set_version(connection: sqlite3.Connection, version: int) -> None:
    """Note how many migrations the file has had."""
    _set(connection, _user_version(connection) >> VERSION_BITS, version)


def number_change(connection: sqlite3.Connection) -> None:
    """Give the transaction under way the next number; a file's first one is drawn."""
    number = _user_version(connection) >> VERSION_BITS
    following = (number + 1) % _NUMBERS or 1
    if not number:
        following = _STEP * (1 + secrets.randbelow(_FIRST_NUMBERS - 1))
    _set(connection, following, version_of(connection))


def is_whole(file: Path) -> bool:
    """Whether a memory that became shorter is one all the same, as after a `VACUUM`."""
    try:
        return _number_of(file) > 0
    except sqlite3.DatabaseError:
        return False


def check_log(file: Path) -> None:
    """Refuse a file beside another file's log, before SQLite reads either.

    A file has its first page before its log has any, so that an empty one beside a log was emptied.

    Raises:
        OutsideError: the file was replaced or emptied, or its log was.
        sqlite3.Error: the file cannot be read.
    """
    log = Path(f"{file}-wal")
    for _ in range(_LOOKS):
        before = _numbers_in(log)
        if before is None or not file.exists():
            return  # SQLite empties a log without a file
        number = _number_of(file)
        after = _numbers_in(log)
        if after is not None and after.salts == before.salts:
            if file.stat().st_size and _belongs(number, before.first, after.last):
                return
            raise OutsideError(
                f"The memory {file} and the write-ahead log beside it are not of one file: a program "
                "ended in the middle, and then one of the two was replaced or emptied.",
                hint=f"Put the other one back. To go on with {file.name} as it is, move {log.name} and "
                f"{file.name}-shm away.",
                file=str(file),
            )


def _belongs(number: int, first: int, last: int) -> bool:
    if not number:  # a file that no change is in yet
        return first % _STEP == 0
    before = first - 1
    return (number - before) % _NUMBERS <= (last - before) % _NUMBERS


class _Numbers(NamedTuple):
    """What a log says of the changes that are in it."""

    salts: bytes
    first: int
    last: int


def _numbers_in(log: Path) -> _Numbers | None:
    """The numbers of a log's changes; None where it has none."""
    try:
        with log.open("rb") as opened:
            return _read(opened)
    except OSError:
        return None  # SQLite says why, if it needs the log


def _read(log: BinaryIO) -> _Numbers | None:
    """Source of the format: https://www.sqlite.org/fileformat2.html, "The Write-Ahead Log"."""
    header = log.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return None
    page_bytes, salts = int.from_bytes(header[8:12]), header[16:24]
    found, at = list[int](), _HEADER_BYTES
    while True:
        frame = os.pread(log.fileno(), _FRAME_BYTES + _AT_VERSION + 4, at)
        if len(frame) < _FRAME_BYTES + _AT_VERSION + 4 or frame[8:16] != salts:
            break
        if int.from_bytes(frame[:4]) == 1:
            found.append(int.from_bytes(frame[-4:]) >> VERSION_BITS)
        at += _FRAME_BYTES + page_bytes
    numbered = [number for number in found if number]
    return _Numbers(salts, numbered[0], numbered[-1]) if numbered else None


def _number_of(file: Path) -> int:
    """The number in the file itself, without its log.

    SQLite reads it: closing the file otherwise would take the locks of this process's connections away.
    """
    place = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(place, uri=True)) as connection:
        return max(0, _user_version(connection)) >> VERSION_BITS


def _user_version(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def _set(connection: sqlite3.Connection, number: int, version: int) -> None:
    connection.execute(f"PRAGMA user_version={number << VERSION_BITS | version}")
