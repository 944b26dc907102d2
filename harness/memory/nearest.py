"""Nearest vectors: exact by numpy, or by usearch's graph where a memory has one. Vectors have length 1."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shim import ConfigError, InvalidRequest

EXACT_UP_TO: Final = 100_000
"""Above so many a graph is worth its minutes: looking at every vector takes tens of milliseconds."""
EXPANSION: Final = 1024
"""Vectors that a search in the graph looks at: recall@10 of 0.88 or more in any direction."""

_LEAST_ROOM: Final = 256

Matrix = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def normalized(vectors: Sequence[Sequence[float]]) -> Matrix:
    """Rows of length 1.

    Raises:
        InvalidRequest: a vector is not finite, or has no direction.
    """
    matrix = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise InvalidRequest(
            "The embedder answered a vector without a direction.",
            hint="Is it an embedding model? See `keepwarm config check`.",
        )
    scaled: Matrix = matrix / lengths
    return scaled


class Nearest:
    """The vectors of a memory, as far as this process has read them; safe to search from any thread.

    With a graph the vectors that it has are not looked at one by one; later ones are.
    """

    def __init__(self, rows: _Rows, size: int, graph: VectorGraph | None = None) -> None:
        self._rows, self._size, self.graph = rows, size, graph

    @classmethod
    def empty(cls) -> Nearest:
        """No vectors."""
        return cls(_Rows(np.empty(0, np.int64), np.empty((0, 0), np.float32)), 0)

    def __len__(self) -> int:
        return self._size

    @property
    def _ids(self) -> Ids:
        return self._rows.ids[: self._size]

    @property
    def _matrix(self) -> Matrix:
        return self._rows.matrix[: self._size]

    def with_more(self, ids: Ids, matrix: Matrix) -> Nearest:
        """These vectors and further ones. This object stays as it is."""
        rows = self._rows.with_more(self._size, ids, matrix)
        return Nearest(rows, self._size + len(ids), self.graph)

    def closest(self, vectors: Matrix) -> list[tuple[int, float]]:
        """For each vector the id of the nearest one and its cosine; id 0 and -1 where there is none."""
        if not len(self):
            return [(0, -1.0)] * len(vectors)
        if self.graph is not None:
            return [self.find(vector, 1)[0] for vector in vectors]
        cosines = self._matrix @ vectors.T
        best = cosines.argmax(axis=0)
        return [(int(self._ids[row]), float(cosines[row, at])) for at, row in enumerate(best)]

    def with_graph(self, graph: VectorGraph) -> Nearest:
        """These vectors with a graph of the first of them."""
        return Nearest(self._rows, self._size, graph)

    def graph_of_all(self) -> VectorGraph:
        """A new graph of these vectors; takes minutes for some hundred thousand.

        Raises:
            ConfigError: usearch is not installed.
        """
        return VectorGraph.of(self._ids, self._matrix)

    def find(
        self, vector: Matrix, count: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """The ids and cosines of the nearest, the nearest first; `among`: only of these ids, exact."""
        if among is not None:
            rows = np.flatnonzero(np.isin(self._ids, np.array(among, np.int64)))
            return _best(self._ids[rows], self._matrix[rows] @ vector, count) if len(rows) else []
        begin = 0 if self.graph is None else len(self.graph)
        near = [] if self.graph is None else self.graph.find(vector, count)
        if begin < len(self):
            near += _best(self._ids[begin:], self._matrix[begin:] @ vector, count)
        return sorted(near, key=lambda one: -one[1])[:count]


class _Rows:
    """Vectors with room for more behind them, so that many small additions copy little."""

    def __init__(self, ids: Ids, matrix: Matrix) -> None:
        self.ids, self.matrix, self._used = ids, matrix, len(ids)
        self._lock = Lock()

    def with_more(self, size: int, ids: Ids, matrix: Matrix) -> _Rows:
        """Rows that have these behind the first `size`: the same where their place is free."""
        with self._lock:
            end = size + len(ids)
            if self._used == size and end <= len(self.ids):
                self.ids[size:end], self.matrix[size:end] = ids, matrix
                self._used = end
                return self
        room = max(2 * end, _LEAST_ROOM)
        grown = _Rows(np.empty(room, np.int64), np.empty((room, matrix.shape[1]), np.float32))
        grown.ids[:size] = self.ids[:size]
        if size:
            grown.matrix[:size] = self.matrix[:size]
        grown.ids[size:end], grown.matrix[size:end] = ids, matrix
        grown._used = end
        return grown


class VectorGraph:
    """usearch's graph (HNSW) of the first vectors of a memory."""

    def __init__(self, index: Any) -> None:
        self._index = index
        index.expansion_search = EXPANSION  # the kept bytes do not have it

    @classmethod
    def of(cls, ids: Ids, matrix: Matrix) -> VectorGraph:
        """A graph of vectors.

        Raises:
            ConfigError: usearch is not installed.
        """
        index = _usearch().Index(ndim=matrix.shape[1], metric="cos", dtype="f16")
        index.add(ids, matrix)
        return cls(index)

    @classmethod
    def from_bytes(cls, data: bytes) -> VectorGraph:
        """What `to_bytes` made.

        Raises:
            ConfigError: usearch is not installed.
        """
        return cls(_usearch().Index.restore(data))

    def to_bytes(self) -> bytes:
        """The graph, to be kept."""
        return bytes(self._index.save())

    def __len__(self) -> int:
        return len(self._index)

    def find(self, vector: Matrix, count: int) -> list[tuple[int, float]]:
        """The ids and cosines of the nearest, as far as the graph finds them."""
        found = self._index.search(vector, count)
        pairs = zip(found.keys, found.distances, strict=True)
        return [(int(key), 1.0 - float(distance)) for key, distance in pairs]


def _usearch() -> Any:
    try:
        return importlib.import_module("usearch.index")
    except ImportError as error:
        raise ConfigError(
            "A graph of vectors needs usearch, which is not installed.",
            hint="Install it: pip install keepwarm[memory].",
        ) from error


def _best(ids: Ids, cosines: npt.NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    few = min(count, len(ids))
    best = np.argpartition(-cosines, few - 1)[:few]
    ordered = best[np.argsort(-cosines[best], kind="stable")]
    return [(int(ids[at]), float(cosines[at])) for at in ordered]
