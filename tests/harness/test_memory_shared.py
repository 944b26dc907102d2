"""A memory whose passages other programs embed and delete meanwhile, and what counts as a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import CaughtUp, MemoryStore, Passage
from shim import EmbeddingReply, InvalidRequest, LoadFailed
from tests.harness.test_memory import MeaningShim, texts


class InterruptedShim(MeaningShim):
    """An embedder that is slow enough for `meanwhile` to happen, once."""

    meanwhile: Callable[[], object] | None = None

    def embed(self, model: str, texts: Sequence[str] | str, **options: Any) -> EmbeddingReply:
        """The vectors, after what happens meanwhile."""
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return super().embed(model, texts, **options)


@pytest.fixture
def slow() -> Iterator[InterruptedShim]:
    """A shim that is never asked for a keeper."""
    with InterruptedShim() as shim:
        yield shim


@pytest.fixture
def two(tmp_path: Path, slow: InterruptedShim) -> Iterator[tuple[MemoryStore, MemoryStore]]:
    """One memory, opened twice: by the slow embedder's program, and by another one."""
    with (
        MeaningShim() as shim,
        MemoryStore(tmp_path / "m.db", "vec", shim=slow) as store,
        MemoryStore(tmp_path / "m.db", "vec", shim=shim) as other,
    ):
        yield store, other


def test_passages_that_another_program_embeds_meanwhile_are_no_copies_of_themselves(
    two: tuple[MemoryStore, MemoryStore], slow: InterruptedShim
) -> None:
    """Two programs that catch up at once lose nothing, and each counts its own work."""
    store, other = two
    slow.evicts = ("judge",)
    store.add(["rain falls", "the cat sleeps", "bytes are counted"])
    slow.evicts, slow.meanwhile = (), other.catch_up
    assert store.catch_up() == CaughtUp()
    assert (len(store), store.pending) == (3, 0)


def test_a_passage_is_no_copy_of_one_that_another_program_deletes_meanwhile(
    two: tuple[MemoryStore, MemoryStore], slow: InterruptedShim
) -> None:
    """The later one stays, and what is gone neither waits nor was embedded."""
    store, other = two
    slow.evicts = ("judge",)
    first, _, _ = store.add(["rain falls", "the cat sleeps", "rain falls!"])
    slow.evicts, slow.meanwhile = (), lambda: other.delete([first])
    assert store.catch_up() == CaughtUp(embedded=2)
    assert texts(store.search("rain falls", results=1)) == ["rain falls!"]


def test_what_waits_is_counted_when_the_embedder_has_failed(
    two: tuple[MemoryStore, MemoryStore], slow: InterruptedShim, tmp_path: Path
) -> None:
    """Passages that another program added meanwhile wait as well."""
    store, _ = two
    slow.evicts = ("judge",)
    store.add(["rain falls"])

    def fails_late() -> None:
        with MemoryStore(tmp_path / "m.db") as third:
            third.add(["the cat sleeps"])
        slow.fails = LoadFailed("no engine")

    slow.evicts, slow.meanwhile = (), fails_late
    found = store.catch_up()
    assert (found.embedded, found.waiting) == (0, 2)
    assert "no engine" in found.degraded


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("rain ab", "rain ba"),
        ("a fee of 12 bytes", "a fee of 21 bytes"),
        ("\u96e8\u4e0b", "\u4e0b\u96e8"),
        ("cat +1", "cat 1+"),
    ],
)
def test_passages_of_other_words_stay_however_near_their_vectors_are(
    tmp_path: Path, one: str, another: str
) -> None:
    """An embedder may see no difference where a reader does: unknown characters, one amount."""
    with MeaningShim() as shim, MemoryStore(tmp_path / "m.db", "vec", shim=shim) as store:
        first, second = shim.embed("vec", [one, another]).vectors
        assert first == second
        assert len(set(store.add([one, another]))) == 2
        assert len(store) == 2
        assert store.add([f"{one}!"]) == [1]


def test_an_embedder_that_is_replaced_while_a_memory_is_open_is_refused(
    two: tuple[MemoryStore, MemoryStore], slow: InterruptedShim, tmp_path: Path
) -> None:
    """Its vectors have the same length, and would be compared with those of the other model."""
    store, _ = two
    store.add(["rain falls"])
    slow.identity = "vec-2"
    with pytest.raises(InvalidRequest, match="another embedder"):
        store.search("rain")
    with pytest.raises(InvalidRequest, match="another embedder"):
        store.add(["the cat sleeps"])
    assert store.pending == 1
    MemoryStore.forget_vectors(tmp_path / "m.db")
    assert store.catch_up() == CaughtUp(embedded=2)
    assert texts(store.search("rain", results=1)) == ["rain falls"]


def test_a_program_that_began_anew_with_another_embedder_is_not_written_over(
    two: tuple[MemoryStore, MemoryStore], slow: InterruptedShim, tmp_path: Path
) -> None:
    """The memory that is still open with the former embedder adds none of its vectors."""
    store, other = two
    store.add(["rain falls"])
    MemoryStore.forget_vectors(tmp_path / "m.db")
    slow.identity = "vec-2"
    assert store.catch_up() == CaughtUp(embedded=1)
    with pytest.raises(InvalidRequest, match="another embedder"):
        other.add(["the cat sleeps"])
    assert store.pending == 1


@pytest.mark.parametrize(
    "key", ["Stra\u00dfe", "\u57ce\u5e02", 'a"b', "a\\b", "a.b", "$", "", "[0]", "\n"]
)
def test_a_filter_finds_a_key_of_any_letters(tmp_path: Path, key: str) -> None:
    """JSON may write a letter as an escape; the key is the same, in a search as in a deletion."""
    with MemoryStore(tmp_path / "m.db") as store:
        store.add([Passage("rain falls", {key: "x"}), Passage("rain fell", {"other": "x"})])
        assert texts(store.search("rain", where={key: "x"})) == ["rain falls"]
        assert store.search("rain", where={key: "y"}).hits == ()
        assert texts(store.search("rain", where={key: None})) == ["rain fell"]
        assert store.delete(where={key: "x"}) == 1
