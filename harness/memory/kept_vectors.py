"""The vectors of a memory's file: written, and read once into this process."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from threading import Lock
from typing import Final

import numpy as np

from harness.memory import memory_rows as rows
from harness.memory.nearest import Matrix, Nearest, VectorGraph
from harness.memory.passages import same_words

NEAR_EQUAL: Final = 0.995
"""Passages of the same words whose vectors have at least this cosine are taken for one.

The vectors alone do not tell. To MiniLM all sentences of Chinese characters that it does not know are
equal, and two pages that differ in one amount nearly so.
"""


class Vectors:
    """What this process has read of a file's vectors. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._nearest, self._last, self._deletions = Nearest.empty(), 0, -1

    def seen_by(self, connection: sqlite3.Connection) -> Nearest:
        """The vectors as this transaction sees them: what is new is read, after a deletion everything."""
        with self._lock:
            deletions = rows.number(connection, "deletions")
            if self._deletions != deletions:
                self._nearest, self._last, self._deletions = Nearest.empty(), 0, deletions
                if data := rows.graph_bytes(connection):
                    self._nearest = self._nearest.with_graph(VectorGraph.from_bytes(data))
            found = connection.execute(
                "SELECT number, id, vector FROM vectors WHERE number > ? ORDER BY number",
                (self._last,),
            ).fetchall()
            if found:
                flat = np.frombuffer(b"".join(blob for _, _, blob in found), np.float16)
                matrix = flat.reshape(len(found), -1).astype(np.float32)
                # A new object: another thread may be searching the present one.
                self._nearest = self._nearest.with_more(
                    np.array([one for _, one, _ in found], np.int64), matrix
                )
                self._last = int(found[-1][0])
            return self._nearest

    def keep(
        self, connection: sqlite3.Connection, ids: Sequence[int], vectors: Matrix
    ) -> tuple[int, dict[int, int]]:
        """Write vectors; returns how many, and the passages that were dropped with those they copy.

        Raises:
            InvalidRequest: they have another length than those that are there.
        """
        rows.check_length(connection, vectors.shape[1])
        rows.set_fact(connection, "length", vectors.shape[1])
        near = self.seen_by(connection).closest(vectors)
        within = np.tril(vectors @ vectors.T, -1)
        copies, kept = dict[int, int](), 0
        for at, (one, vector) in enumerate(zip(ids, vectors, strict=True)):
            # Another process may have embedded or deleted it meanwhile; its vector is no copy's then.
            text = rows.waiting_text(connection, one)
            if text is None:
                within[:, at] = -1.0
                continue
            earlier = (ids[int(within[at].argmax())], float(within[at].max()))
            twins = (twin for twin, cosine in (near[at], earlier) if cosine >= NEAR_EQUAL)
            twin = next((t for t in twins if same_words(rows.text_of(connection, t), text)), None)
            if twin is not None:
                connection.execute("DELETE FROM passages WHERE id = ?", (one,))
                copies[one] = twin
                within[:, at] = -1.0
                continue
            blob = vector.astype(np.float16).tobytes()
            connection.execute("INSERT INTO vectors(id, vector) VALUES (?, ?)", (one, blob))
            kept += 1
        return kept, copies

    def use(self, graph: VectorGraph, deletions: int) -> None:
        """Use a graph of the first vectors, unless a deletion came between."""
        with self._lock:
            if self._deletions == deletions:
                self._nearest = self._nearest.with_graph(graph)
