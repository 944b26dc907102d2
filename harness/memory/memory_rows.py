"""The rows of a memory's file: inserted, filtered, ranked by words, and read back."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from harness.given import a_table, refused
from harness.memory.passages import Hit, Passage, check_text
from harness.memory.ranking import Place, fused, idf, place_weight
from harness.memory.word_index import words_of
from shim import InvalidRequest

GRAPH_PART_BYTES: Final = 64 * 1024 * 1024
PENDING: Final = (
    "FROM passages WHERE NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.id = passages.id)"
)


def insert(connection: sqlite3.Connection, passage: Passage) -> int:
    """Add a passage unless its text is there; returns the id of the one that is."""
    row = (passage.digest, passage.text, passage.metadata_text(), passage.quality, time.time())
    connection.execute(
        "INSERT OR IGNORE INTO passages(hash, text, metadata, quality, added) VALUES (?, ?, ?, ?, ?)",
        row,
    )
    found = connection.execute("SELECT id FROM passages WHERE hash = ?", (passage.digest,))
    return int(found.fetchone()[0])


def text_of(connection: sqlite3.Connection, one: int) -> str | None:
    """The text of a passage; None where it is gone."""
    found = connection.execute("SELECT text FROM passages WHERE id = ?", (one,)).fetchone()
    return None if found is None else str(found[0])


def waiting_text(connection: sqlite3.Connection, one: int) -> str | None:
    """The text of a passage that has no vector; None where it has one, or is gone."""
    has = connection.execute("SELECT 1 FROM vectors WHERE id = ?", (one,)).fetchone()
    return None if has else text_of(connection, one)


def by_words(
    connection: sqlite3.Connection,
    query: str,
    count: int,
    where: Mapping[str, Any] | None,
    *,
    whole_from: float | None,
) -> list[Place]:
    """The passages that have words of the query, by BM25, the best first.

    `whole_from`: the share of the query's weight from which on a passage's place counts in full; None for
    every place in full.
    """
    words, condition = words_of(query), filter_of({} if where is None else where)
    (passages,) = connection.execute("SELECT count(*) FROM passages").fetchone()
    having = {word: _count_of(connection, word) for word in words}
    # To BM25 a word that half of the passages have weighs nothing, and it takes nearly all of the time.
    telling = [word for word in words if 2 * having[word] < passages]
    found = _matching(connection, telling, count, condition)
    if len(found) < count and len(telling) < len(words):
        found = _matching(connection, words, count, condition)
    if whole_from is None or not found:
        return [(one, 1.0) for one, _ in found]
    most = math.fsum(idf(having[word], passages) for word in words)
    return [(one, place_weight(weight / most, whole_from)) for one, weight in found]


def _count_of(connection: sqlite3.Connection, word: str) -> int:
    """How many passages have a word."""
    found = connection.execute("SELECT count(*) FROM words WHERE words MATCH ?", (word,))
    return int(found.fetchone()[0])


def _matching(
    connection: sqlite3.Connection,
    words: Sequence[str],
    count: int,
    filtered: tuple[str, list[Any]],
) -> list[tuple[int, float]]:
    """Passages that have one of the words, with their weight by BM25, the heaviest first."""
    if not words:
        return []
    condition, values = filtered
    rows = connection.execute(
        "SELECT passages.id, -words.rank FROM words JOIN passages ON passages.id = words.rowid "  # noqa: S608
        f"WHERE words MATCH ? AND {condition} ORDER BY words.rank LIMIT ?",
        (" OR ".join(words), *values, count),
    )
    return [(int(one), float(weight)) for one, weight in rows]


def ids_where(connection: sqlite3.Connection, where: Mapping[str, Any]) -> list[int]:
    """The ids of all passages with this metadata."""
    condition, values = filter_of(where)
    rows = connection.execute(f"SELECT passages.id FROM passages WHERE {condition}", values)  # noqa: S608
    return [int(one) for (one,) in rows]


def passages_after(
    connection: sqlite3.Connection, after: int, count: int, where: Mapping[str, Any]
) -> list[tuple[int, Passage]]:
    """The next passages by their ids, with this metadata."""
    condition, values = filter_of(where)
    found = connection.execute(
        "SELECT id, text, metadata, quality FROM passages "  # noqa: S608
        f"WHERE id > ? AND {condition} ORDER BY id LIMIT ?",
        (after, *values, count),
    )
    return [(one, Passage(text, json.loads(kept), quality)) for one, text, kept, quality in found]


def filter_of(where: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """A filter by metadata as SQL with its values; keys and values are never part of the SQL."""
    parts, values = ["1"], list[Any]()
    for key, value in a_table("`where`", where).items():
        _check_condition(key, value)
        # By no path: SQLite finds no key by one that has a sign or a letter which JSON may escape.
        has = "EXISTS (SELECT 1 FROM json_each(passages.metadata) WHERE key = ? AND "
        if value is None:
            parts.append(f"NOT {has}type != 'null')")
            values.append(key)
        elif isinstance(value, bool):  # to SQLite true is 1
            parts.append(f"{has}type = ?)")
            values += [key, "true" if value else "false"]
        else:  # and a list is its text
            kinds = "'text'" if isinstance(value, str) else "'integer', 'real'"
            parts.append(f"{has}value = ? AND type IN ({kinds}))")
            values += [key, value]
    return " AND ".join(parts), values


def _check_condition(key: str, value: object) -> None:
    for text in (key, value):
        if isinstance(text, str):
            check_text(text)
            if "\0" in text:
                raise refused("A text in `where`", text, "one without zero bytes")
    if not (
        isinstance(value, str | int | None) or (isinstance(value, float) and math.isfinite(value))
    ):
        raise refused(f"{key} in `where`", value, "a text, a number, true, false or null")


def hits(
    connection: sqlite3.Connection, rankings: Sequence[Sequence[Place]], results: int
) -> Iterator[Hit]:
    """The best passages of several rankings."""
    rows = dict[int, tuple[str, str, float]]()
    for one in {one for ranking in rankings for one, _ in ranking}:
        found = connection.execute(
            "SELECT text, metadata, quality FROM passages WHERE id = ?", (one,)
        )
        if (row := found.fetchone()) is not None:
            rows[one] = row
    for one, score in fused(rankings, {one: row[2] for one, row in rows.items()})[:results]:
        text, metadata, quality = rows[one]
        yield Hit(one, text, score, json.loads(metadata), quality)


def fact(connection: sqlite3.Connection, name: str) -> bytes | None:
    """What the file says of itself, by name."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else bytes(row[0])


def set_fact(connection: sqlite3.Connection, name: str, value: bytes | int) -> None:
    """Let the file say something of itself."""
    kept = str(value).encode() if isinstance(value, int) else value
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, kept))


def number(connection: sqlite3.Connection, name: str) -> int:
    """A fact that is a number; 0 where it is not known."""
    return int((fact(connection, name) or b"0").decode())


def count_deletion(connection: sqlite3.Connection) -> None:
    """Tell every process that vectors it has read are gone, and drop the graph that has them."""
    connection.execute("DELETE FROM graph")
    set_fact(connection, "deletions", number(connection, "deletions") + 1)


def keep_graph(connection: sqlite3.Connection, data: bytes) -> None:
    """Put a graph of vectors in the place of the one that is there, in parts that SQLite can hold."""
    connection.execute("DELETE FROM graph")
    parts = [data[at : at + GRAPH_PART_BYTES] for at in range(0, len(data), GRAPH_PART_BYTES)]
    connection.executemany("INSERT INTO graph VALUES (?, ?)", enumerate(parts))


def graph_bytes(connection: sqlite3.Connection) -> bytes:
    """The graph of vectors; empty without one."""
    return b"".join(part for (part,) in connection.execute("SELECT bytes FROM graph ORDER BY part"))


def check_length(connection: sqlite3.Connection, length: int) -> None:
    """Refuse vectors of another length than those that are there.

    Raises:
        InvalidRequest: with both lengths.
    """
    known = number(connection, "length")
    if known and known != length:
        raise InvalidRequest(
            f"The embedder answered vectors of {length} numbers; the memory's have {known}.",
            hint="It is another model than before. `MemoryStore.forget_vectors` begins anew.",
            known=known,
            given=length,
        )
