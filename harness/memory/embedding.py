"""The embedder of a memory: asked only where nothing else has to leave for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.memory import memory_rows as rows
from harness.memory.nearest import Matrix, normalized
from shim import InvalidRequest, LoadError, OutsideError, PromptTooLong, Shim


class Embedding:
    """A model that makes vectors.

    Args:
        shim: has the model.
        model: its name there.
    """

    def __init__(self, shim: Shim, model: str) -> None:
        self._shim, self.model = shim, model
        self._file: Path | None = None
        self._read: tuple[object, bytes] = None, b""

    def identity(self) -> bytes:
        """What tells its vectors from those of another model. A file is read again where it changed."""
        stamp, (before, known) = self._stamp(), self._read
        if stamp is None or stamp != before:
            info = self._shim.describe(self.model)
            known = (info.identity or self.model).encode()
            # The stamp is older than what was read, so that no change in between is missed.
            self._file, self._read = info.file, (stamp, known)
        return known

    def _stamp(self) -> object:
        """What changes with the model's entry and its file; None where no file is known to be there."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        entry = self._shim.config.entry(self.model)
        return entry, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check_made(self, connection: sqlite3.Connection, file: Path) -> bytes | None:
        """Refuse a file that has another embedder's vectors; returns whose it has, None before the first.

        Asked with every vector: a model's file may be replaced, and another program may begin anew with
        `forget_vectors`, while a memory is open.

        Raises:
            InvalidRequest: with both.
        """
        known, own = rows.fact(connection, "embedder"), self.identity()
        if known is None or known == own:
            return known
        raise InvalidRequest(
            f"The memory {file} was made with another embedder than {self.model}.",
            hint="Vectors of two models cannot be compared. `forget_vectors` begins anew.",
            known=known.decode("utf-8", "replace"),
            given=own.decode("utf-8", "replace"),
        )

    def claim(self, connection: sqlite3.Connection, file: Path) -> None:
        """Let a file say that its vectors are this embedder's.

        Raises:
            InvalidRequest: they are another's.
        """
        if self.check_made(connection, file) is None:
            rows.set_fact(connection, "embedder", self.identity())

    def why_not(self) -> str:
        """Why it may not be asked now; empty where it may."""
        try:
            leaving = self._shim.would_evict(self.model)
        except (LoadError, OutsideError) as error:
            return f"{self.model} cannot be asked: {error}"
        if leaving is None:
            return f"{self.model} has no place now"
        return f"{self.model} would evict {', '.join(leaving)}" if leaving else ""

    def of_query(self, query: str) -> tuple[Matrix | None, str]:
        """The vector of a query; None and the reason where there is none now."""
        if why := self.why_not():
            return None, why
        try:
            return self.of([query])[0], ""
        except (LoadError, OutsideError) as error:
            return None, f"{self.model} failed: {error}"

    def of(self, texts: Sequence[str]) -> Matrix:
        """Vectors of length 1, one row a text; the beginning stands for a text that is too long.

        Raises:
            PromptTooLong: it does not read one character.
            KeepwarmError: as `Shim.embed`.
        """
        try:
            return normalized(self._shim.embed(self.model, texts).vectors)
        except PromptTooLong:
            # One text that is too long for the embedder must not keep others from their vectors.
            if len(texts) > 1:
                half = len(texts) // 2
                return np.vstack((self.of(texts[:half]), self.of(texts[half:])))
            if len(texts[0]) < 2:
                raise
            return self.of([texts[0][: len(texts[0]) // 2]])
