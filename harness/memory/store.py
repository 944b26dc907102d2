"""`MemoryStore`: passages in one file, found by words and by meaning. It gives way for others' bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, Self

from harness.given import a_count, a_file, a_list, a_text, an_object, refused
from harness.memory import memory_rows as rows
from harness.memory.database import Database
from harness.memory.embedding import Embedding
from harness.memory.kept_vectors import Vectors
from harness.memory.nearest import EXACT_UP_TO
from harness.memory.passage_lines import batches_of
from harness.memory.passages import CaughtUp, Found, Passage
from harness.memory.ranking import WHOLE_FROM, Place, weights_of
from harness.memory.spans import traced
from harness.progress_bar import progress_bar
from shim import InvalidRequest, LoadError, OutsideError, Shim, default_shim

CANDIDATES: Final = 12
RESULTS: Final = 4
BATCH: Final = 64
"""Texts that are embedded with one request."""


class MemoryStore:
    """Passages that are found by words (BM25) and by meaning (vectors of the configured embedder).

    The embedder gives way: where it could be resident only by evicting another model, which the budget says
    before anything is loaded, a search compares words alone and says so, and added passages wait for
    `catch_up`. Of a text that is longer than the embedder reads, the beginning makes the vector. Safe for
    several threads and processes.

    Args:
        file: made when it is not there.
        embedder: a model of the configuration; None for words alone.
        shim: has the embedder; by default that of the found configuration.

    Raises:
        InvalidRequest: the file is no memory, of a newer keepwarm, or was made with another embedder.
        OutsideError: the file cannot be opened.
    """

    def __init__(
        self, file: Path | str, embedder: str | None = None, *, shim: Shim | None = None
    ) -> None:
        an_object("`embedder`", embedder, (str, type(None)))
        an_object("`shim`", shim, (Shim, type(None)))
        self._embedding: Embedding | None = None
        self._vectors = Vectors()
        if embedder is not None:
            self._embedding = Embedding(shim or default_shim(), embedder)
            self._embedding.identity()  # an unknown model makes no file
        self._database = Database(a_file("The file of a memory", file))
        if self._embedding is not None:
            try:
                with self._database.writing() as connection:
                    self._embedding.claim(connection, self._database.file)
            except BaseException:
                self.close()
                raise

    # What is there

    def __repr__(self) -> str:
        model = self._embedding.model if self._embedding else "words alone"
        return f"MemoryStore({str(self._database.file)!r}, {model})"

    def __len__(self) -> int:
        return self._count("FROM passages")

    @property
    def pending(self) -> int:
        """Passages that have no vector yet."""
        return self._count(rows.PENDING)

    def passages(self, where: Mapping[str, Any] | None = None) -> Iterator[tuple[int, Passage]]:
        """All passages (with this metadata) and their ids, in the order in which they came.

        Raises:
            InvalidRequest: `where` is no metadata.
            OutsideError: the file cannot be read.
        """
        wanted = {} if where is None else where
        rows.filter_of(wanted)  # at the call, not with the first passage
        return self._each_passage(wanted)

    def _each_passage(self, where: Mapping[str, Any]) -> Iterator[tuple[int, Passage]]:
        last = 0
        while True:
            with self._database.reading() as connection:
                some = rows.passages_after(connection, last, BATCH, where)
            if not some:
                return
            yield from some
            last = some[-1][0]

    def _count(self, which: str) -> int:
        with self._database.reading() as connection:
            return int(connection.execute(f"SELECT count(*) {which}").fetchone()[0])

    # Changes

    @traced("memory add")
    def add(self, passages: Iterable[Passage | str]) -> list[int]:
        """Remember passages; returns their ids, that of the known one for a text that is there.

        All are committed together, before anything is embedded; `catch_up` follows where the embedder has
        its bytes.

        Raises:
            InvalidRequest: a passage cannot be kept, or it is one text and no list; then none is.
            OutsideError: the file cannot be written.
        """
        a_list("The passages", passages)
        ready = [one if isinstance(one, Passage) else Passage(one) for one in passages]
        with self._database.writing() as connection:
            ids = [rows.insert(connection, one) for one in ready]
        _, copies = self._catch_up()
        return [copies.get(one, one) for one in ids]

    @traced("memory catch_up")
    def catch_up(self) -> CaughtUp:
        """Embed what waits, if the embedder can be resident without evicting another model.

        A passage is dropped for an earlier one of the same words whose vector nearly equals its own.

        Raises:
            InvalidRequest: it is another embedder than before.
        """
        report, _ = self._catch_up()
        return report

    @traced("memory build_graph")
    def build_graph(self) -> bool:
        """Make searches by meaning fast for many passages: keep a graph of their vectors in the file.

        Worth its minutes above 100,000 passages, and again when many more have come; those are looked at
        one by one until then. A deletion drops the graph, because it has the vectors of what was deleted.

        Returns:
            Whether a graph was made; False for fewer passages.

        Raises:
            ConfigError: usearch is not installed.
            OutsideError: the file cannot be written.
        """
        with self._database.reading() as connection:
            nearest = self._vectors.seen_by(connection)
            deletions = rows.number(connection, "deletions")
        if len(nearest) <= EXACT_UP_TO:
            return False
        graph = nearest.graph_of_all()
        with self._database.writing() as connection:
            if rows.number(connection, "deletions") != deletions:
                return False
            rows.keep_graph(connection, graph.to_bytes())
        self._vectors.use(graph, deletions)
        return True

    @traced("memory delete")
    def delete(self, ids: Iterable[int] = (), where: Mapping[str, Any] | None = None) -> int:
        """Forget passages for good: text, words and vectors are overwritten, in the log as well.

        Args:
            ids: those of passages; unknown ones count for nothing.
            where: all passages with this metadata.

        Returns:
            How many are gone.

        Raises:
            InvalidRequest: the ids are no list, or `where` is empty, which would mean every passage.
            OutsideError: the file cannot be written.
        """
        if where is not None and not where:
            raise InvalidRequest(
                "An empty `where` would delete every passage.",
                hint="Name the metadata, or the ids; to forget all, delete the file.",
            )
        gone = {a_count("An id", one, -math.inf) for one in a_list("The ids", ids)}
        with self._database.writing() as connection:
            if where is not None:
                gone |= set(rows.ids_where(connection, where))
            count = sum(
                connection.execute("DELETE FROM passages WHERE id = ?", (one,)).rowcount
                for one in gone
            )
            if count:
                # Deleted words stay in FTS5's segments until these are merged.
                connection.execute("INSERT INTO words(words) VALUES ('optimize')")
                rows.count_deletion(connection)
        if count:
            self._database.empty_log()
        return count

    @traced("memory import_jsonl")
    def import_jsonl(self, file: Path | str, *, quiet: bool = False) -> int:
        """Remember each line of a file: an object with `text`, and perhaps `metadata` and `quality`.

        Returns:
            How many lines were read. All before a line that cannot be kept are kept.

        Raises:
            InvalidRequest: there is no such file, or a line is no such object; the error names it.
            OutsideError: the file cannot be read.
        """
        count = 0
        try:
            with (
                a_file("The file of passages", file).open("rb") as lines,
                progress_bar("passages", None, quiet=quiet) as advance,
            ):
                for batch in batches_of(Path(file), lines, BATCH):
                    self.add(batch)
                    count += len(batch)
                    advance(len(batch))
        except FileNotFoundError as error:
            raise InvalidRequest(
                f"{file} is not there.", hint="Name a file of passages."
            ) from error
        except OSError as error:
            raise OutsideError(
                f"{file} cannot be read: {error.strerror or error}.", file=str(file)
            ) from error
        return count

    # Search

    @traced("memory search")
    def search(
        self,
        query: str,
        *,
        results: int = RESULTS,
        candidates: int = CANDIDATES,
        where: Mapping[str, Any] | None = None,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> Found:
        """The passages that answer a query best, by reciprocal-rank fusion of both rankings.

        A place among the words counts by how much of the query its passage has.

        Args:
            query: words or a question.
            results: passages that are returned.
            candidates: passages that each ranking gives.
            where: only passages with this metadata.
            weights: how much the ranking by words and that by vectors count; not both 0.

        Raises:
            InvalidRequest: the query is empty, or a number is not positive.
            OutsideError: the file cannot be read.
        """
        a_text("The query", query)
        if a_count("`candidates`", candidates) < a_count("`results`", results):
            raise refused("`candidates`", candidates, "at least as many as `results`")
        if not query.strip():
            raise InvalidRequest("The query is empty.", hint="Give words or a question.")
        by_words, by_vectors = weights_of(weights)
        vector, degraded = self._embedding.of_query(query) if self._embedding else (None, "")
        with self._database.reading() as connection:
            rankings = list[list[Place]]()
            if by_words or vector is None:
                whole_from = None if vector is None else WHOLE_FROM
                found = rows.by_words(connection, query, candidates, where, whole_from=whole_from)
                rankings.append([(one, (by_words or 1.0) * weight) for one, weight in found])
            if by_vectors and vector is not None and self._embedding:
                among = None if where is None else rows.ids_where(connection, where)
                self._embedding.check_made(connection, self._database.file)
                rows.check_length(connection, len(vector))
                near = self._vectors.seen_by(connection).find(vector, candidates, among)
                rankings.append([(one, by_vectors) for one, _ in near])
            return Found(tuple(rows.hits(connection, rankings, results)), degraded)

    # Ends

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    @staticmethod
    def forget_vectors(file: Path | str) -> None:
        """Drop all vectors of a file, so that another embedder can make its own.

        Raises:
            InvalidRequest: the file is no memory, or is not there.
        """
        path = a_file("The file of a memory", file)
        with suppress(OSError):  # what stands in the way is told when it is opened
            if not path.exists():
                raise InvalidRequest(f"There is no memory {path}.", hint="Name the file of one.")
        with closing(Database(path)) as database, database.writing() as connection:
            connection.execute("DELETE FROM vectors")
            connection.execute("DELETE FROM facts WHERE name IN ('embedder', 'length')")
            rows.count_deletion(connection)

    def _catch_up(self) -> tuple[CaughtUp, dict[int, int]]:
        """What `catch_up` does, and for each dropped passage the one that it is a copy of."""
        copies, embedded = dict[int, int](), 0
        embedding = self._embedding
        if embedding is None or not self.pending:
            return CaughtUp(), copies
        why, last = embedding.why_not(), 0
        while not why and (waiting := self._waiting(last)):
            last = waiting[-1][0]
            try:
                vectors = embedding.of([text for _, text in waiting])
            except (LoadError, OutsideError) as error:
                why = f"{embedding.model} failed: {error}"
                break
            with self._database.writing() as connection:
                embedding.claim(connection, self._database.file)
                kept, found = self._vectors.keep(connection, [one for one, _ in waiting], vectors)
            copies |= found
            embedded += kept
        # Other programs add, embed and delete meanwhile.
        return CaughtUp(embedded, len(copies), self.pending if why else 0, why), copies

    def _waiting(self, last: int) -> list[tuple[int, str]]:
        with self._database.reading() as connection:
            found = connection.execute(
                f"SELECT id, text {rows.PENDING} AND id > ? ORDER BY id LIMIT {BATCH}",
                (last,),
            )
            return [(int(one), str(text)) for one, text in found]
