"""The memory: found by words and by meaning, one text once, deleted for good, and giving way."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import CaughtUp, MemoryStore, Passage
from harness.memory import memory_rows
from harness.memory.database import MIGRATIONS
from harness.memory.ranking import fused
from harness.memory.store import BATCH
from harness.memory.word_index import indexed, words_of
from shim import EmbeddingReply, InvalidRequest, LoadFailed, OutsideError, PromptTooLong, Shim
from shim.model_info import ModelInfo
from traces import RunTrace

TOPICS = ("rain", "cat", "bytes", "music")


class MeaningShim(Shim):
    """An embedder that knows four topics: the vector says how often a text has each."""

    def __init__(self) -> None:
        super().__init__({"models": {"vec": {"url": "http://127.0.0.1:9/v1"}}})
        self.evicts: tuple[str, ...] | None = ()
        self.fails: Exception | None = None
        self.asked: list[str] = []
        self.identity = "vec-1"
        self.file: Path | None = None
        self.described = 0
        self.reads = 1_000_000

    def would_evict(self, model: str) -> tuple[str, ...] | None:
        """What the test tells."""
        return self.evicts

    def describe(self, model: str) -> ModelInfo:
        """A local embedder."""
        self.described += 1
        return ModelInfo(model, "embedder", remote=False, identity=self.identity, file=self.file)

    def embed(self, model: str, texts: Sequence[str] | str, **_options: Any) -> EmbeddingReply:
        """Counts of topics, and a number of the text so that few vectors are equal."""
        if self.fails is not None:
            raise self.fails
        if any(len(text) > self.reads for text in texts):
            raise PromptTooLong("more than the embedder reads")
        self.asked += texts
        return EmbeddingReply(model, tuple(map(self._vector, texts)))

    @staticmethod
    def _vector(text: str) -> tuple[float, ...]:
        counts = [float(text.casefold().count(topic)) for topic in TOPICS]
        angle = sum(map(ord, text.casefold().replace("!", "")))
        return (*counts, 0.9 * math.sin(angle), 0.9 * math.cos(angle))


@pytest.fixture
def meaning() -> Iterator[MeaningShim]:
    """A shim that is never asked for a keeper."""
    with MeaningShim() as shim:
        yield shim


@pytest.fixture
def memory(tmp_path: Path, meaning: MeaningShim) -> Iterator[MemoryStore]:
    """An empty memory with an embedder."""
    with MemoryStore(tmp_path / "m.db", "vec", shim=meaning) as store:
        yield store


def texts(found: Any) -> list[str]:
    """The texts of a search, the best first."""
    return [hit.text for hit in found.hits]


def test_words_and_meaning_both_find(memory: MemoryStore) -> None:
    """A passage that both rankings have comes first; one that only meaning finds is there, too."""
    memory.add(["rain on the roof", "the cat sleeps", "music and music and rain", "a fee in bytes"])
    found = memory.search("rain rain", results=2)
    assert found.degraded == ""
    assert texts(found)[0] == "rain on the roof"
    assert "the cat sleeps" in texts(memory.search("CATS: cat, cat, cat", results=1))


def test_one_text_is_one_passage(memory: MemoryStore) -> None:
    """By its hash, and by its vector where it differs in nothing that the embedder sees."""
    first, second = memory.add(["rain falls", "the cat sleeps"])
    assert memory.add(["rain falls", " rain falls \n"]) == [first, first]
    assert memory.add(["the cat sleeps!"]) == [second]
    assert len(memory) == 2


def test_an_embedder_that_would_evict_another_model_is_not_asked(
    memory: MemoryStore, meaning: MeaningShim
) -> None:
    """Words answer alone, flagged; the vectors are caught up in one batch later."""
    meaning.evicts = ("judge",)
    memory.add(["rain on the roof", "the cat sleeps"])
    found = memory.search("roof")
    assert texts(found) == ["rain on the roof"]
    assert found.degraded == "vec would evict judge"
    meaning.evicts = None
    assert memory.search("roof").degraded == "vec has no place now"
    assert memory.catch_up() == CaughtUp(waiting=2, degraded="vec has no place now")
    assert meaning.asked == []
    assert memory.pending == 2
    meaning.evicts = ()
    assert memory.catch_up() == CaughtUp(embedded=2)
    assert memory.pending == 0
    assert memory.search("roof").degraded == ""


def test_an_embedder_that_fails_degrades_a_search_and_loses_no_passage(
    memory: MemoryStore, meaning: MeaningShim
) -> None:
    """What was added is committed before it is embedded."""
    meaning.fails = LoadFailed("no engine")
    memory.add(["rain on the roof"])
    found = memory.search("roof")
    assert texts(found) == ["rain on the roof"]
    assert "no engine" in found.degraded
    assert memory.pending == 1


def test_a_text_that_the_embedder_cannot_read_whole_keeps_no_other_from_its_vector(
    memory: MemoryStore, meaning: MeaningShim
) -> None:
    """Its beginning stands for it, in passages and in queries."""
    meaning.reads = 40
    memory.add(["the cat sleeps", "rain " * 30, "music and bytes", *(f"n {n}" for n in range(9))])
    assert memory.pending == 0
    assert texts(memory.search("rain " * 50, results=1)) == ["rain " * 30]
    assert max(map(len, meaning.asked)) <= 40
    meaning.reads = 0
    with pytest.raises(PromptTooLong):
        memory.search("rain")


def test_metadata_filters_both_rankings_and_quality_weighs(memory: MemoryStore) -> None:
    """A filter by text, number and null; of two equals the better one comes first."""
    memory.add(
        [
            Passage("rain in spring", {"year": 2025, "by": "ann"}),
            Passage("rain in autumn", {"year": 2026, "by": None}),
            Passage("rain in winter", {"year": 2026, 'by"x': 1}, quality=3.0),
        ]
    )
    assert texts(memory.search("rain", where={"year": 2025})) == ["rain in spring"]
    assert texts(memory.search("rain", where={"by": None, "year": 2026}))[0] in (
        "rain in winter",
        "rain in autumn",
    )
    assert texts(memory.search("rain"))[0] == "rain in winter"
    assert memory.search("rain", where={"by": "eve"}).hits == ()
    assert texts(memory.search("rain", where={'by"x': 1})) == ["rain in winter"]
    for bad in ({"a\0b": 1}, {"a": "b\0"}, {"a": [1]}, {"by": "\ud83d"}):
        with pytest.raises(InvalidRequest, match=r"where|half of a character"):
            memory.search("rain", where=bad)


def test_a_deleted_passage_is_nowhere_in_the_file(
    memory: MemoryStore, tmp_path: Path, meaning: MeaningShim
) -> None:
    """Text, words and vector are overwritten; other processes' vectors follow."""
    other = MemoryStore(tmp_path / "m.db", "vec", shim=meaning)
    secret, _ = memory.add(["the cat is called Xanthippe7", "rain on the roof"])
    assert len(other.search("cat").hits) == 2
    assert memory.delete([secret, 999]) == 1
    assert texts(other.search("cat xanthippe7")) == ["rain on the roof"]
    other.close()
    for file in tmp_path.iterdir():
        assert b"anthippe7" not in file.read_bytes().lower(), file
    assert memory.delete(where={"x": 1}) == 0


def test_signs_of_a_question_are_no_operators(memory: MemoryStore) -> None:
    """FTS5 has a syntax of its own; a question is words."""
    memory.add(["rain on the roof"])
    for query in ('"rain', "rain AND", "rain*", "NEAR(rain", "text:rain", "(rain)", "rain -roof"):
        assert texts(memory.search(query)) == ["rain on the roof"]
    assert words_of("???") == []
    assert memory.search("???").hits != ()


def test_ranks_are_fused_and_weighed() -> None:
    """The formula as it is written."""
    rankings = [[(1, 1.0), (2, 0.5)], [(2, 1.0), (3, 1.0)]]
    scores = dict(fused(rankings, {1: 1.0, 2: 1.0, 3: 2.0}))
    assert scores == {1: 1 / 61, 2: 0.5 / 62 + 1 / 61, 3: 2 / 62}
    assert [one for one, _ in fused(rankings, {1: 1.0, 2: 1.0, 3: 1.0})] == [2, 1, 3]
    assert fused([[(1, 1.0)]], {}) == []


def test_a_ranking_by_words_counts_by_how_much_of_the_question_it_found(
    memory: MemoryStore,
) -> None:
    """A passage with the question's small words alone does not stand beside what its meaning finds."""
    memory.add(
        [f"how to do this in general {n}" for n in range(8)]
        + ["the cat sleeps", "a cat and a cat", "music at night", "rain again", *map(str, range(9))]
    )
    query = "how to do this: cat, cat, cat and cats"
    found = texts(memory.search(query, results=2, candidates=2))
    assert set(found) == {"the cat sleeps", "a cat and a cat"}
    assert texts(memory.search("music at night", results=1)) == ["music at night"]


def test_words_that_half_of_the_passages_have_are_looked_for_only_where_others_find_too_little(
    tmp_path: Path,
) -> None:
    """To BM25 they weigh nothing, and most of a search went into them."""
    asked: list[str] = []
    with MemoryStore(tmp_path / "words.db") as memory:
        memory.add([f"the canteen opens at {n}" for n in range(12)])
        memory.add([f"the rain of day {n}" for n in range(20)] + ["a lorry"])
        with memory._database.reading() as connection:
            connection.set_trace_callback(asked.append)
            found = memory_rows.by_words(connection, "the canteen", 12, None, whole_from=None)
            connection.set_trace_callback(None)
        lorry = texts(memory.search("the lorry", results=4))
    assert len(found) == 12
    assert len(asked) > 1
    assert [sql for sql in asked if "OR" in sql.split()] == []
    assert lorry[0] == "a lorry"
    assert [text.split()[0] for text in lorry[1:]] == ["the"] * 3


def test_an_embedders_file_is_read_again_only_where_it_changed(tmp_path: Path) -> None:
    """Every search asks whose the vectors are; reading the file each time took milliseconds of each."""
    with MeaningShim() as shim:
        shim.file = tmp_path / "vec.gguf"
        shim.file.write_bytes(b"one")
        with MemoryStore(tmp_path / "m.db", "vec", shim=shim) as memory:
            memory.add(["the cat sleeps", "music at night"])
            described = shim.described
            for _ in range(3):
                assert texts(memory.search("cat", results=1)) == ["the cat sleeps"]
            assert shim.described == described
            shim.file.write_bytes(b"another")
            shim.identity = "vec-2"
            with pytest.raises(InvalidRequest, match="another embedder"):
                memory.search("cat")


def test_a_caller_weighs_words_against_vectors(memory: MemoryStore) -> None:
    """0 leaves a ranking out."""
    memory.add(["the cat sleeps", "feeding", "rain"])
    query = "feeding: concatenate, concatenated, concatenation"
    assert texts(memory.search(query, results=1, weights=(1, 0))) == ["feeding"]
    assert texts(memory.search(query, results=1, weights=(0, 1))) == ["the cat sleeps"]
    for bad in ((0, 0), (1,), (-1, 1), (math.nan, 1), "ab"):
        with pytest.raises(InvalidRequest):
            memory.search(query, weights=bad)  # type: ignore[arg-type]


def test_lines_of_a_file_are_imported_and_a_bad_one_is_named(
    memory: MemoryStore, tmp_path: Path
) -> None:
    """What came before it is kept."""
    file = tmp_path / "p.jsonl"
    good = [json.dumps({"text": f"rain number {n}", "metadata": {"n": n}}) for n in range(70)]
    file.write_text("\n".join(good), "utf-8")
    assert memory.import_jsonl(file, quiet=True) == 70
    count = len(memory)
    new = [json.dumps({"text": f"music {n}"}) for n in range(3)]
    file.write_text("\n".join([*new, '{"text": "music", "mood": 1}']), "utf-8")
    with pytest.raises(InvalidRequest, match=r"Line 4 of .*p\.jsonl .*: it has mood\. A line is"):
        memory.import_jsonl(file, quiet=True)
    assert len(memory) == count + 3
    for bad in (b'{"text": 3}', b'{"text": "\xff"}', b"[1]", b'{"txt": "a"}', b"\n"):
        file.write_bytes(bad)
        with pytest.raises(InvalidRequest, match="Line 1 of"):
            memory.import_jsonl(file, quiet=True)
    with pytest.raises(InvalidRequest, match="is not there"):
        memory.import_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(OutsideError, match="cannot be read"):
        memory.import_jsonl(tmp_path)


@pytest.mark.parametrize(
    "bad",
    [
        {"text": "  "},
        {"text": "x" * 1_000_001},
        {"text": "x", "quality": 0.0},
        {"text": "x", "quality": math.nan},
        {"text": "x", "metadata": {"a": object()}},
        {"text": "x", "metadata": [1]},
        {"text": "x", "metadata": reduce(lambda inner, _: {"a": inner}, range(100_000), {})},
        {"text": "half \ud83d"},
        {"text": 3},
        {"text": b"x"},
        {"text": "x", "quality": "1"},
    ],
)
def test_passages_that_cannot_be_kept_are_refused(bad: dict[str, Any]) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidRequest):
        Passage(**bad)


def test_files_that_are_no_memory_are_refused_and_left_alone(
    tmp_path: Path, meaning: MeaningShim
) -> None:
    """Text, another program's database, a newer version, a folder, another embedder."""
    file = tmp_path / "x.db"
    file.write_text("dear diary " * 100, "utf-8")
    with pytest.raises(InvalidRequest, match="no memory"):
        MemoryStore(file)
    assert file.read_text("utf-8").startswith("dear diary")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mails (text)")
    before = other.read_bytes()
    with pytest.raises(InvalidRequest, match="another program"):
        MemoryStore(other)
    with pytest.raises(InvalidRequest, match="zero byte"):
        MemoryStore(tmp_path / "a\0b")
    assert other.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"x.db", "other.db"}
    newer = tmp_path / "newer.db"
    MemoryStore(newer, "vec", shim=meaning).close()
    meaning.identity = "vec-2"
    with pytest.raises(InvalidRequest, match="another embedder") as refused:
        MemoryStore(newer, "vec", shim=meaning)
    assert refused.traceback, "a program that keeps the error keeps no file open"
    assert str(newer) not in [one.path for one in psutil.Process().open_files()]
    MemoryStore.forget_vectors(newer)
    with pytest.raises(InvalidRequest, match="There is no memory"):
        MemoryStore.forget_vectors(tmp_path / "mistyped.db")
    assert not (tmp_path / "mistyped.db").exists()
    MemoryStore(newer, "vec", shim=meaning).close()
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(InvalidRequest, match="version 99"):
        MemoryStore(newer)
    with pytest.raises(OutsideError, match="cannot be used"):
        MemoryStore(tmp_path)


def test_a_file_of_an_older_version_is_brought_up_to_date_or_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version's statements run once, all in one transaction with the new number."""
    file = tmp_path / "old.db"
    with MemoryStore(file) as store:
        store.add(["rain on the roof"])
    now = len(MIGRATIONS)
    broken = (*MIGRATIONS, "ALTER TABLE passages ADD COLUMN a TEXT; SELECT nonsense FROM nowhere;")
    monkeypatch.setattr("harness.memory.database.MIGRATIONS", broken)
    with pytest.raises(OutsideError, match="nowhere"):
        MemoryStore(file)
    second = "ALTER TABLE passages ADD COLUMN a TEXT; UPDATE passages SET a = 'x;y';"
    monkeypatch.setattr("harness.memory.database.MIGRATIONS", (*MIGRATIONS, second))
    for _ in range(2):
        with MemoryStore(file) as store:
            assert texts(store.search("roof")) == ["rain on the roof"]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] % 256 == now + 1
        assert connection.execute("SELECT a FROM passages").fetchall() == [("x;y",)]
    monkeypatch.setattr("harness.memory.database.MIGRATIONS", MIGRATIONS)
    with pytest.raises(InvalidRequest, match=f"version {now + 1}"):
        MemoryStore(file)


SPOKEN = {
    "银行": "我的银行账户在周五开放",
    "猫": "黑色的猫在房间里睡觉",
    "觉": "黑色的猫在房间里睡觉",
    "タワー": "東京タワーは高い。",
    "เปิด": "ที่พักของเราเปิดทุกวัน",
    "은행": "서울은행에서 돈을 찾다",
    "strasse": "Die Straße ist gesperrt",
    "Geöffnet": "geo\u0308ffnet ab acht Uhr",
    "كتب": "كَتَبَ الولد الدرس",
    "हिन्दी": "यह हिन्दी में है",
    "\uff26ull": "full width",
}


def test_forms_of_an_english_word_are_one_word(tmp_path: Path) -> None:
    """What is asked for decides, and not in which form."""
    with MemoryStore(tmp_path / "m.db") as store:
        store.add(
            [
                "The canteen opens at eleven. It closes at two.",
                "The library is on the fourth floor. It is open day and night.",
            ]
        )
        for query in ("When does the canteen open?", "opening of canteens", "closed canteen"):
            assert texts(store.search(query))[0].startswith("The canteen"), query


def test_words_are_found_in_scripts_with_and_without_blanks(tmp_path: Path) -> None:
    """One word of a sentence finds that sentence and no other, in Chinese as in German and Arabic."""
    with MemoryStore(tmp_path / "m.db") as store:
        store.add(SPOKEN.values())
        for word, text in SPOKEN.items():
            assert texts(store.search(word)) == [text], word
        store.delete([1])
        assert texts(store.search("银行")) == []


def test_a_memory_of_the_first_version_finds_chinese_words_once_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are indexed anew, and its passages can still be deleted."""
    file = tmp_path / "old.db"
    monkeypatch.setattr("harness.memory.database.MIGRATIONS", MIGRATIONS[:1])
    with MemoryStore(file) as store:
        store.add(SPOKEN.values())
        assert texts(store.search("银行")) == []
    monkeypatch.setattr("harness.memory.database.MIGRATIONS", MIGRATIONS)
    with MemoryStore(file) as store:
        assert texts(store.search("银行")) == [SPOKEN["银行"]]
        assert store.delete([1]) == 1
    with closing(sqlite3.connect(file)) as connection:
        connection.create_function("indexed", 1, indexed)
        connection.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_memory_whose_file_was_removed_or_replaced_says_so_and_loses_nothing_silently(
    tmp_path: Path, *, replaced: bool
) -> None:
    """On the thread that opened it and on another one, for writing and reading; nothing is made there."""
    file = tmp_path / "m.db"
    with MemoryStore(file) as store, ThreadPoolExecutor(1) as other:
        store.add(["rain on the roof"])
        if replaced:
            MemoryStore(tmp_path / "new.db").close()
            (tmp_path / "new.db").replace(file)
        else:
            file.unlink()
        before = file.read_bytes() if replaced else None
        for ask in (
            lambda: store.add(["music"]),
            lambda: store.search("rain"),
            lambda: store.delete([1]),
            lambda: len(store),
            lambda: other.submit(store.add, ["music"]).result(),
        ):
            with pytest.raises(OutsideError, match="removed or replaced"):
                ask()
        assert (file.read_bytes() if file.exists() else None) == before


@pytest.mark.parametrize(
    ("left", "merged"), [(0, False), (1, False), (0, True), (1, True), (4096, True), (8192, True)]
)
def test_a_memory_whose_file_was_cut_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, *, merged: bool
) -> None:
    """A thread's first call waited for 30 seconds for the other connections, and then deleted the log."""
    file, log = tmp_path / "m.db", tmp_path / "m.db-wal"
    monkeypatch.setattr("harness.memory.database.BUSY_S", 60.0)
    with MemoryStore(file) as store, ThreadPoolExecutor(1) as other:
        store.add([f"{number} " + "rain " * 200 for number in range(20)])
        if merged:
            store.delete([1])
        whole = file.stat().st_size
        os.truncate(file, left)
        before = log.read_bytes()
        for ask in (
            lambda: store.add(["music"]),
            lambda: store.search("rain"),
            lambda: other.submit(len, store).result(),
        ):
            with pytest.raises(OutsideError, match=f"was cut from {whole:,} to {left:,} bytes"):
                ask()
        if not left and not merged:
            with pytest.raises(OutsideError, match="replaced or emptied"):
                MemoryStore(file)
        assert (file.stat().st_size, log.read_bytes()) == (left, before)


def test_a_memory_that_was_made_shorter_by_a_vacuum_goes_on(tmp_path: Path) -> None:
    """It is whole, although it has fewer bytes than before."""
    file = tmp_path / "m.db"
    with MemoryStore(file) as store:
        store.add([f"{number} " + "rain " * 200 for number in range(100)])
        store.delete(range(1, 100))
        before = file.stat().st_size
        with closing(sqlite3.connect(file)) as connection:
            connection.create_function("indexed", 1, indexed)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert file.stat().st_size < before
        assert len(store.search("rain").hits) == 1
        assert len(store) == 1


def test_a_file_that_goes_while_it_is_written_fails_the_addition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the begin and the commit."""
    file = tmp_path / "m.db"
    real = memory_rows.insert

    def insert(connection: sqlite3.Connection, passage: Passage) -> int:
        file.unlink(missing_ok=True)
        return real(connection, passage)

    with MemoryStore(file) as store:
        monkeypatch.setattr(memory_rows, "insert", insert)
        with pytest.raises(OutsideError, match="not kept"):
            store.add(["rain"])


def test_a_closed_memory_and_impossible_searches_are_typed(
    memory: MemoryStore, tmp_path: Path
) -> None:
    """The caller's mistakes."""
    for query, results, candidates in ((" ", 1, 1), ("x", 0, 1), ("x", 4, 2)):
        with pytest.raises(InvalidRequest, match=r"candidates|results|query is empty"):
            memory.search(query, results=results, candidates=candidates)
    odd: list[Callable[[Any], Any]] = [
        lambda m: m.search(None),
        lambda m: m.search("x", where="abc"),
        lambda m: m.search("x", where={"n": 2**70}),
        lambda m: m.search("x", results=2**70, candidates=2**70),
        lambda m: m.add("one text"),
        lambda m: m.add([None]),
        lambda m: m.add(None),
        lambda m: m.delete(["a"]),
        lambda m: m.delete([2**70]),
        lambda m: m.delete(where={}),
    ]
    for ask in odd:
        with pytest.raises(InvalidRequest):
            ask(memory)
    with MemoryStore(tmp_path / "words.db") as by_words:
        no_tables: list[Any] = [[], "", 0, False]
        for where in no_tables:
            with pytest.raises(InvalidRequest, match="`where`"):
                by_words.search("x", where=where)
    memory.close()
    with pytest.raises(InvalidRequest, match="closed"):
        memory.search("x")


_WRITER = """
import sys
from pathlib import Path
from harness import MemoryStore
store = MemoryStore(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10_000):
    ids = store.add([f"passage {sys.argv[2]} {number} word{number}"])
    print(number, flush=True)
"""


def _killed_writer(file: Path, name: str, lines: int) -> int:
    """The last number that a writer said was committed before it was killed."""
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(file), name], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(lines + 1)]
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()
    return int(said[-1]) if said[-1].endswith("\n") else int(said[-2])


def _check_killed(tmp_path: Path, kills: int) -> None:
    file = tmp_path / "k.db"
    for kill in range(kills):
        last = _killed_writer(file, f"w{kill}", 2 + kill % 5)
        with MemoryStore(file) as store:
            assert texts(store.search(f"w{kill} word{last}", results=1)) == [
                f"passage w{kill} {last} word{last}"
            ]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")


def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """What it said is there, and the index of words agrees with the passages."""
    _check_killed(tmp_path, 3)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_hundred_killed_writers_lose_nothing(tmp_path: Path) -> None:
    """As above, a hundred times on one file."""
    _check_killed(tmp_path, 100)


def test_writers_in_several_processes_wait_for_each_other(tmp_path: Path) -> None:
    """None is refused, and a reader beside them sees whole passages."""
    file = tmp_path / "s.db"
    script = _WRITER.replace("10_000", "40")
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(file), name], stdout=subprocess.DEVNULL)
        for name in ("a", "b")
    ]
    with MemoryStore(file) as store:
        while any(writer.poll() is None for writer in writers):
            assert all(len(text.split()) == 4 for text in texts(store.search("passage")))
        assert [writer.returncode for writer in writers] == [0, 0]
        assert len(store) == 80


def test_a_graph_finds_what_looking_at_every_vector_finds(
    tmp_path: Path, meaning: MeaningShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept in the file, new passages are found beside it, and a deletion drops it."""
    monkeypatch.setattr("harness.memory.store.EXACT_UP_TO", 100)
    file = tmp_path / "g.db"
    with MemoryStore(file, "vec", shim=meaning) as store:
        store.add(f"rain {'cat ' * (n % 7)}{'bytes ' * (n % 5)}number {n}" for n in range(90))
        assert not store.build_graph()
        ids = store.add(f"music {'cat ' * (n % 7)}number {n}" for n in range(60))
        queries = ["cat cat rain", "bytes and music", "rain number 7", "music number 50"]
        exact = [texts(store.search(query)) for query in queries]
        assert store.build_graph()
        assert [texts(store.search(query)) for query in queries] == exact
    with MemoryStore(file, "vec", shim=meaning) as store:
        assert [texts(store.search(query)) for query in queries] == exact
        assert store._vectors._nearest.graph is not None
        store.add(["music and rain and bytes and a cat in one"])
        assert "in one" in texts(store.search("rain bytes music cat one"))[0]
        store.delete(ids[:1])
        assert len(store.search("music cat number").hits) == 4
        assert store._vectors._nearest.graph is None


def test_what_a_memory_does_is_on_the_trace_with_why_words_answered_alone(
    memory: MemoryStore, meaning: MeaningShim, tmp_path: Path
) -> None:
    """A slow or a degraded search explains itself; one that is refused is an error there, too."""
    with RunTrace(directory=tmp_path) as run:
        memory.add(["The cat sleeps.", "Rain falls."])
        meaning.evicts = ("writer",)
        memory.search("cat")
        with pytest.raises(InvalidRequest):
            memory.search("")
        memory.delete([1])
    assert run.trace_path is not None
    events = json.loads(run.trace_path.read_text("utf-8"))
    spans = [e for e in events if e["name"].startswith("memory ")]
    assert [e["name"] for e in spans] == [
        f"memory {x}" for x in ("add", "search", "search", "delete")
    ]
    added, found, refused, deleted = (e["args"] for e in spans)
    assert (added["passages"], deleted["passages"]) == (2, 1)
    assert (found["hits"], found["degraded"]) == (1, "vec would evict writer")
    assert refused["error.type"] == "InvalidRequest"


def test_an_embedder_with_another_length_is_a_typed_error_in_a_search(
    memory: MemoryStore, meaning: MeaningShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name may stand for another model since: numpy's own error told that."""
    memory.add(["rain in spring"])
    monkeypatch.setattr(meaning, "_vector", lambda _: (1.0, 2.0))
    with pytest.raises(InvalidRequest, match="vectors of 2 numbers; the memory's have 6"):
        memory.search("rain")


def test_a_filter_knows_true_from_1_and_a_text_from_a_list(memory: MemoryStore) -> None:
    """To SQLite they are equal; a deletion by such a filter took other passages as well."""
    kept = {"true": True, "one": 1, "float": 1.0, "list": [1], "text": "[1]", "none": None}
    for name, value in kept.items():
        memory.add([Passage(f"rain {name}", {"k": value})])

    def found(value: object) -> set[str]:
        hits = memory.search("rain", results=9, where={"k": value}).hits
        return {hit.text.removeprefix("rain ") for hit in hits}

    assert found(True) == {"true"}
    assert found(1) == found(1.0) == {"one", "float"}
    assert found("[1]") == {"text"}
    assert found(None) == {"none"}
    assert found(False) == set()
    for bad in ({"k": math.nan}, {"k": math.inf}, {"k\0": 1}):
        with pytest.raises(InvalidRequest, match="in `where` cannot be"):
            memory.search("rain", where=bad)
    assert memory.delete(where={"k": 1}) == 2
    with pytest.raises(InvalidRequest, match="Give a table"):
        Passage("rain", {1: "a"})  # type: ignore[dict-item]


def test_a_memory_in_place_of_a_device_or_a_fifo_is_refused(tmp_path: Path) -> None:
    """SQLite left a journal beside /dev/null."""
    os.mkfifo(tmp_path / "m.db")
    with pytest.raises(OutsideError, match="no regular file"):
        MemoryStore(tmp_path / "m.db")
    assert [one.name for one in tmp_path.iterdir()] == ["m.db"]


def test_what_a_memory_has_is_listed_and_can_be_taken_to_another(
    memory: MemoryStore, tmp_path: Path
) -> None:
    """Whole passages with their ids, in order; lines of them are what `import_jsonl` reads."""
    assert repr(memory).endswith("m.db', vec)")
    given = [
        Passage(f"Line {n} says 磨 {'x' * n}.", {"even": n % 2 == 0}, 1 + n / 100)
        for n in range(BATCH + 6)
    ]
    ids = memory.add(given)
    assert list(memory.passages()) == list(zip(ids, given, strict=True))
    assert [one.text for _, one in memory.passages({"even": True})] == [
        one.text for one in given[::2]
    ]
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(f"{json.dumps(asdict(one))}\n" for _, one in memory.passages()))
    with MemoryStore(tmp_path / "other.db") as other:
        assert other.import_jsonl(file, quiet=True) == len(given)
        assert [one for _, one in other.passages()] == given
    assert list(memory.passages({"even": "neither"})) == []
    with pytest.raises(InvalidRequest, match="`where`"):
        memory.passages([("even", True)])  # type: ignore[arg-type]


def test_a_memory_may_change_while_it_is_listed(memory: MemoryStore) -> None:
    """No transaction stays open between two passages, so that writers are not kept waiting."""
    ids = memory.add(f"Line {n} {'y' * n}." for n in range(BATCH + 3))
    listed = memory.passages()
    seen = [next(listed)[0]]
    assert memory.delete(ids[-1:]) == 1
    assert [*seen, *(one for one, _ in listed)] == ids[:-1]
