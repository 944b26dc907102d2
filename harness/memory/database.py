"""The file of a memory: its schema, its versions, and connections that outlive threads and kills.

One SQLite file in WAL mode with `synchronous=FULL`: what is committed outlives a crash of the machine. FTS5
follows the table of passages by triggers, in the same transaction, so that no index can disagree. The log
that a killed program left is taken in, if it is of this file (`harness.memory.log_pairing`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from harness.memory.log_pairing import check_log, is_whole, number_change, set_version, version_of
from harness.memory.word_index import indexed
from harness.record_files import why_not
from shim import InvalidRequest, OutsideError

APPLICATION_ID: Final = 0x6B777761  # "kwwa"
BUSY_S: Final = 30.0
"""Seconds that a writer waits for another process's."""
_PRAGMAS: Final = (
    "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON",
    "trusted_schema=ON",  # the triggers call `indexed`, which some builds refuse without it
)  # fmt: skip

_FIRST: Final = """
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL DEFAULT '{}',
    quality REAL NOT NULL DEFAULT 1.0,
    added REAL NOT NULL
);
CREATE TABLE vectors (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id INTEGER NOT NULL UNIQUE REFERENCES passages(id) ON DELETE CASCADE,
    vector BLOB NOT NULL
);
CREATE TABLE graph (part INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(
    text, content='passages', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
);
CREATE TRIGGER passage_added AFTER INSERT ON passages BEGIN
    INSERT INTO words(rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER passage_deleted AFTER DELETE ON passages BEGIN
    INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, old.text);
END;
"""
_UNSPACED_SCRIPTS: Final = """
DROP TRIGGER passage_added;
DROP TRIGGER passage_deleted;
DROP TABLE words;
CREATE VIEW worded AS SELECT id, indexed(text) AS text FROM passages;
CREATE VIRTUAL TABLE words USING fts5(
    text, content='worded', content_rowid='id',
    tokenize="unicode61 remove_diacritics 2 categories 'L* N* Co M*'"
);
CREATE TRIGGER passage_added AFTER INSERT ON passages BEGIN
    INSERT INTO words(rowid, text) VALUES (new.id, indexed(new.text));
END;
CREATE TRIGGER passage_deleted AFTER DELETE ON passages BEGIN
    INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, indexed(old.text));
END;
INSERT INTO words(words) VALUES ('rebuild');
"""
"""FTS5 takes a run of Chinese for one word; what is indexed is made here (`harness.memory.word_index`)."""
_STEMS: Final = """
DROP TABLE words;
CREATE VIRTUAL TABLE words USING fts5(
    text, content='worded', content_rowid='id',
    tokenize="porter unicode61 remove_diacritics 2 categories 'L* N* Co M*'"
);
INSERT INTO words(words) VALUES ('rebuild');
"""
"""Without stems, "open" in a question misses "opens", and finds what has nothing but "open" instead."""
MIGRATIONS: Final[tuple[str, ...]] = (_FIRST, _UNSPACED_SCRIPTS, _STEMS)
"""What makes a file of each version one of the next; a new file runs all of them."""


class Database:
    """Connections to one file, one a thread.

    Args:
        file: made when it is not there.

    Raises:
        InvalidRequest: it is no memory, or one of a newer keepwarm.
        OutsideError: it cannot be opened or written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._seen: _Seen | None = None
        try:
            with self.writing() as connection:
                _migrate(connection, file)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A snapshot: what other processes write meanwhile is not seen.

        Raises:
            OutsideError: the file cannot be read, was cut, or is another one than was opened.
        """
        with self._transaction("BEGIN DEFERRED") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is committed together, or not at all.

        Raises:
            OutsideError: the file cannot be written, or another process wrote for 30 seconds, or the
                file was cut or is another one than was opened.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
            number_change(connection)
        self._check_there()  # the file may have gone while it was written

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection()
            connection.execute(begin)
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
        except sqlite3.DatabaseError as error:
            raise self._said(error) from error
        except OverflowError as error:
            raise InvalidRequest(
                f"A number is too large for the memory {self.file}: {error}.",
                hint="Numbers have 64 bits at most.",
                file=str(self.file),
            ) from error

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise InvalidRequest(f"The memory {self.file} is closed.", hint="Open it anew.")
        if self._seen is not None:
            self._check_there()
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = _open(self.file)
            with self._lock:
                self._all.append(found)
                self._seen = self._seen or _look(self.file)
        return found

    def _check_there(self) -> None:
        """Refuse to go on in a file that no name leads to: what it is given would be lost at its close.

        Nor in one that was cut: SQLite waits for the connections to it, and then deletes its log.

        Raises:
            OutsideError: the file was removed, replaced or cut since it was opened.
        """
        now, seen = _look(self.file), self._seen
        if now is None or seen is None or now.which != seen.which:
            done, kept = "removed or replaced", "What was added since then is not kept."
        elif now.size < seen.size and not is_whole(self.file):
            done, kept = f"cut from {seen.size:,} to {now.size:,} bytes", "The rest of it is lost."
        else:
            self._seen = now
            return
        raise OutsideError(
            f"The memory {self.file} was {done} by another program while it was open. {kept}",
            hint="Close it, see which program did that, and open it anew.",
            file=str(self.file),
        )

    def empty_log(self) -> None:
        """Put the write-ahead log into the file, so that what was deleted is in neither."""
        with closing(self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")) as done:
            done.fetchall()
        self._check_there()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            left, self._all, self._closed = self._all, [], True
        for connection in left:
            connection.close()

    def _said(self, error: sqlite3.DatabaseError) -> Exception:
        if "not a database" in str(error) or "malformed" in str(error):
            return InvalidRequest(
                f"{self.file} is no memory of keepwarm, or is damaged: {error}.",
                hint="Name another file, or restore this one from a copy.",
                file=str(self.file),
            )
        why, make = why_not(self.file, error)
        look = "See its folder's space and permissions, and which programs write to it"
        return OutsideError(
            f"The memory {self.file} cannot be used: {why}.",
            hint=f"{make or look}.",
            file=str(self.file),
        )


class _Seen(NamedTuple):
    """Which file has a name, and its bytes."""

    which: tuple[int, int]
    size: int


def _look(file: Path) -> _Seen | None:
    """What has this name now; None for nothing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return _Seen((found.st_dev, found.st_ino), found.st_size)


def _open(file: Path) -> sqlite3.Connection:
    odd = False
    with suppress(OSError):  # what stands in the way is told when it is opened
        odd = file.exists() and not file.is_file()
    if odd:
        # SQLite would write to a device, and leave a journal beside it.
        raise OutsideError(
            f"The memory {file} cannot be used: it is no regular file.", file=str(file)
        )
    check_log(file)
    connection = sqlite3.connect(
        file, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        _version(connection, file)  # before anything is written into a file of another program
        # What was deleted is overwritten, and not only unlinked.
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.create_function("indexed", 1, indexed, deterministic=True)
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, file: Path) -> int:
    """How many migrations the file has had; 0 for a new one.

    Raises:
        InvalidRequest: it is no memory, or one of a newer keepwarm.
    """
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    version = version_of(connection)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found != APPLICATION_ID and tables:
        raise InvalidRequest(
            f"{file} is a database of another program.",
            hint="Name another file for the memory.",
            file=str(file),
        )
    if not 0 <= version <= len(MIGRATIONS):
        raise InvalidRequest(
            f"{file} is a memory of version {version}; this keepwarm reads up to {len(MIGRATIONS)}.",
            hint="A newer keepwarm wrote it. Update keepwarm, or name another file.",
            version=version,
            file=str(file),
        )
    return version


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    for script in MIGRATIONS[_version(connection, file) :]:
        for statement in _statements(script):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    set_version(connection, len(MIGRATIONS))


def _statements(script: str) -> Iterator[str]:
    """The statements one by one: `executescript` would commit the transaction around them."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""
