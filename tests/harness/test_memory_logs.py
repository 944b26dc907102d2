"""A write-ahead log that a killed program left: used for its own file, and for no other."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harness import MemoryStore
from shim import OutsideError

LOG = "m.db-wal"


def killed(file: Path, place: Path, *texts: str, copied: Callable[[], None] | None = None) -> Path:
    """The file and the log as they are when a program that added these texts is killed."""
    place.mkdir()
    with MemoryStore(file) as store:
        for text in texts:
            store.add([text])
        if copied is not None:
            copied()
        for one in (file, Path(f"{file}-wal")):
            shutil.copyfile(one, place / one.name)
    return place / file.name


def known(file: Path) -> set[str]:
    """What a memory has."""
    with MemoryStore(file) as store:
        return {hit.text for hit in store.search("rain", results=10, candidates=10).hits}


def of_another(folder: Path) -> Path:
    """Another memory's file."""
    with MemoryStore(folder / "another.db") as store:
        store.add([f"rain {n}" for n in range(50)])
    return folder / "another.db"


def of_earlier(folder: Path) -> Path:
    """A copy of the same memory, from before the log began."""
    return folder / "earlier.db"


@pytest.mark.parametrize("other", [of_another, of_earlier])
def test_a_file_that_was_replaced_beside_a_log_is_refused_and_neither_is_changed(
    tmp_path: Path, other: Callable[[Path], Path]
) -> None:
    """SQLite would put the pages of one into the other. Both can still be had, each by itself."""
    file = tmp_path / "m.db"
    with MemoryStore(file) as store:
        store.add([f"rain on the roof {n}" for n in range(50)])
    shutil.copyfile(file, tmp_path / "earlier.db")
    with MemoryStore(file) as store:
        store.delete(range(1, 25))
    left = killed(file, tmp_path / "killed", "rain at night", "rain at noon")
    whole = shutil.copyfile(left, tmp_path / "whole.db")
    shutil.copyfile(other(tmp_path), left)
    log = left.with_name(LOG)
    before = left.read_bytes(), log.read_bytes()
    with pytest.raises(OutsideError, match=r"not of one file.*m\.db-wal"):
        MemoryStore(left)
    assert (left.read_bytes(), log.read_bytes()) == before
    shutil.copyfile(whole, left)
    assert {"rain at night", "rain at noon"} <= known(left)
    shutil.copyfile(other(tmp_path), left)
    assert len(known(left)) == 10, "without a log any memory can be put in the place"


def test_a_log_that_was_replaced_is_refused(tmp_path: Path) -> None:
    """The file is whole and right, and the log is the one of a new memory, which has all of its pages."""
    one = killed(tmp_path / "m.db", tmp_path / "one", "rain")
    shutil.copyfile(of_another(tmp_path), one)
    with pytest.raises(OutsideError, match="not of one file"):
        MemoryStore(one)
    one.with_name(LOG).unlink()
    assert len(known(one)) == 10


def checkpointed(file: Path) -> Callable[[], None]:
    """Puts the log into the file, and leaves it where it is."""

    def work() -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    return work


def test_a_log_of_its_own_file_is_used(tmp_path: Path) -> None:
    """Of a new memory, of an old one, after a checkpoint, and of a file without numbers."""
    file = tmp_path / "m.db"
    assert known(killed(file, tmp_path / "new", "rain a")) == {"rain a"}
    assert known(killed(file, tmp_path / "old", "rain b")) == {"rain a", "rain b"}
    left = killed(file, tmp_path / "both", "rain c", copied=checkpointed(file))
    assert known(left) == {"rain a", "rain b", "rain c"}
    with closing(sqlite3.connect(file)) as connection:
        (number,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute(f"PRAGMA user_version={number % 256}")
    assert len(known(killed(file, tmp_path / "unnumbered", "rain d"))) == 4
