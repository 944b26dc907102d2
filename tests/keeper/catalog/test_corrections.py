"""What engines really take: learned, kept, and booked the next time."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from backends.footprint.learned import Learned, LearnedStore, default_folder
from backends.scripted import Script, ScriptedEngine
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim import DeadlineExceeded, Shim
from shim.keeper.catalog.catalog import CatalogEngine, build_catalog
from shim.keeper.catalog.corrections import Corrections, Seen, compare
from shim.keeper.engines import monitor as monitor_module
from tests.processes import wait_until

PLACED = Placement(EngineArgs(n_ctx=512), {HOST: Footprint(80, 10, 5, 5)}, "dry-run")
MIB = 1 << 20


def seen(reported: int, measured: int = 0, uses: int = 0) -> Seen:
    """An engine on the host as it was found."""
    return Seen({HOST: reported}, {HOST: measured} if measured else {}, uses)


@pytest.mark.parametrize(
    ("what", "corrected"),
    [
        (seen(95), None),
        (seen(95, 101), None),
        (seen(97), 102),
        (seen(95, 120), 120),
        (seen(90), None),
        (seen(80, 85, 2), None),
        (seen(80, 85, 3), 85),
        (seen(95, 70, 9), None),
        (seen(0, 70, 9), None),
    ],
)
def test_up_at_once_and_down_only_when_warm_and_never_below_the_buffers(
    what: Seen, corrected: int | None
) -> None:
    """Over 1% either way; a process that takes less than its buffers has not touched them yet."""
    found = compare(PLACED, what)
    assert (found[HOST].corrected_bytes if found else None) == corrected


def test_an_embedding_engine_is_never_corrected_down() -> None:
    """Its output buffer grows to the longest batch it will ever see."""
    growing = Placement(replace(PLACED.args, embeddings=True), PLACED.footprints, "dry-run")
    assert compare(growing, seen(80, 85, 9)) is None
    assert compare(growing, seen(80, 120, 9)) is not None


def test_a_device_without_a_process_figure_is_corrected_by_what_was_reported() -> None:
    """An RPC server's bytes are only what llama.cpp says; the overhead booked stays."""
    placed = Placement(PLACED.args, {"RPC0": Footprint(80, 10, 10, 4)}, "closed-form")
    assert compare(placed, Seen({"RPC0": 80}, {}, 0)) is None
    found = compare(placed, Seen({"RPC0": 80}, {}, 3))
    assert found is not None
    assert found["RPC0"].corrected_bytes == 84


def test_a_correction_is_applied_remembered_and_then_right(tmp_path: Path) -> None:
    """The next keeper books it, the same figures teach nothing more, the peak never falls."""
    store = LearnedStore(tmp_path / "learned")
    first = Corrections(store, "build").observe("m", "file", PLACED, seen(115))
    assert first.bookings == ((HOST, 120),)
    assert first.source == "engine"
    learned = LearnedStore(tmp_path / "learned").get("file", PLACED.args, "build")
    assert learned is not None
    again = learned.apply(PLACED)
    assert again.bookings == first.bookings
    assert (
        replace(learned, devices={HOST: replace(learned.devices[HOST], corrected_bytes=130)})
        .apply(again)
        .reason
        == again.reason
    ), "a correction of a correction says it once"
    later = Corrections(store, "build")
    assert later.observe("m", "file", again, seen(115)) is again
    assert later.observe("m", "file", again, seen(100, 110, 9)) is again
    assert store.get("file", replace(PLACED.args, n_ctx=1024), "build") is None
    assert store.get("file", PLACED.args, "another build") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9}', "null"])
def test_a_damaged_entry_is_said_and_set_aside(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is corrected by it, and the next one takes its place."""
    store = LearnedStore(tmp_path)
    Corrections(store, "build").observe("m", "file", PLACED, seen(115))
    (entry,) = tmp_path.glob("*.json")
    assert entry.stat().st_mode & 0o777 == 0o600
    entry.write_text(text)
    caplog.clear()
    assert store.get("file", PLACED.args, "build") is None
    assert ["learned" in r.getMessage() for r in caplog.records] == [True]
    assert not entry.exists()


def test_an_entry_of_impossible_bytes_is_damaged(tmp_path: Path) -> None:
    """Negative bytes, and true for 1, are no bytes."""
    store = LearnedStore(tmp_path)
    Corrections(store, "build").observe("m", "file", PLACED, seen(115))
    (entry,) = tmp_path.glob("*.json")
    for amount in (-1, True, 1.5, "9"):
        data = json.loads(entry.read_text())
        data["devices"][HOST]["corrected_bytes"] = amount
        with pytest.raises(ValueError, match="whole number"):
            Learned.from_json(data)


@pytest.mark.parametrize(
    "figures",
    [
        {"corrected_bytes": 1 << 45, "measured_bytes": 1 << 45},
        {"corrected_bytes": 500},
        {"corrected_bytes": 10},
        {"corrected_bytes": 90, "reported_bytes": 100},
    ],
)
def test_figures_that_no_engine_has_are_not_believed(
    tmp_path: Path, figures: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """More than was ever seen, less than the buffers, or out of all proportion to the estimate."""
    store = LearnedStore(tmp_path)
    Corrections(store, "build").observe("m", "file", PLACED, seen(115))
    (entry,) = tmp_path.glob("*.json")
    data = json.loads(entry.read_text())
    data["devices"][HOST].update(figures)
    entry.write_text(json.dumps(data))
    caplog.clear()
    assert store.get("file", PLACED.args, "build") is None
    assert ["cannot be" in r.getMessage() for r in caplog.records] == [True]


def test_an_engine_that_ran_away_is_booked_and_teaches_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A chat template that builds text without end took 34 times what was booked."""
    store = LearnedStore(tmp_path)
    corrections = Corrections(store, "build")
    now = corrections.observe("m", "file", PLACED, seen(95, 5 << 30))
    assert now.bookings == ((HOST, 5 << 30),)
    assert "too much to be learned" in caplog.text
    assert store.get("file", PLACED.args, "build") is None
    after = corrections.observe("m", "file", PLACED, seen(115))
    assert after.bookings == ((HOST, 120),), "nor the next start in this keeper"


def test_whatever_is_learned_is_believed_the_next_time(tmp_path: Path) -> None:
    """No sequence of findings leaves figures that the next keeper would refuse."""
    random = Random(1)
    for number in range(300):
        store = LearnedStore(tmp_path)
        corrections, placed = Corrections(store, "build"), PLACED
        for _ in range(4):
            what = seen(random.choice([0, 80, 94, 96, 115]), random.choice([0, 60, 97, 102, 300]))
            what = replace(what, uses=random.choice([0, 3]))
            placed = corrections.observe("m", f"file{number}", placed, what)
        if store.folder.is_dir() and (known := store.get(f"file{number}", PLACED.args, "build")):
            assert known.apply(PLACED).bookings == placed.bookings
    assert not list(tmp_path.glob("*.damaged"))


class Bench:
    """Shims over scripted engines that share what they learn."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.scripts: dict[str, Script] = {}
        self.entries: dict[str, Any] = {
            "a": {"path": str(models["classifier"]), "context": 1024},
            "b": {"path": str(models["evaluator"]), "context": 1024},
        }
        self.limit = "200MiB"

    def make(self, entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        """The factory that the keeper uses."""
        return ScriptedEngine(entry.names[0], runtime, self.scripts.get(entry.names[0]))

    def open(self) -> Shim:
        """A Shim with a fresh inline keeper."""
        budget = {"device": "host", "limit": self.limit, "max_wait": 1}
        return Shim({"budget": budget, "models": self.entries}, factory=self.make)


def booked(shim: Shim, model: str) -> int:
    """Bytes booked for a model's engine now."""
    row = next(r for r in shim.status()["engines"] if model in r["models"])
    return int(row["bytes"].get(HOST, 0))


@pytest.fixture
def bench(tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Keepers that measure often, with a state folder of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(monitor_module, "MEASURE_EVERY_S", 0.02)
    return Bench(tiny_models)


def test_buffers_that_were_not_booked_are_booked_at_once_and_by_the_next_keeper(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Reported at the load: this load, the next load and the next keeper's book them; it is logged."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    bench.scripts["a"] = Script(buffers={HOST: 90 * MIB})
    with bench.open() as shim:
        before = build_catalog(shim.config).prepared["a"].placements[0].footprints[HOST]
        shim.load("a")
        expected = 90 * MIB + before.overhead_bytes
        assert booked(shim, "a") == expected
        shim.unload("a")
        shim.load("a")
        assert booked(shim, "a") == expected
    assert sum("learned" in r.getMessage() for r in caplog.records) == 1
    with bench.open() as shim:
        placement = build_catalog(shim.config).prepared["a"].placements[0]
    assert placement.bookings == ((HOST, expected),)
    assert placement.source == "engine"


def test_a_small_correction_is_not_shown_on_a_programs_stderr(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A fiftieth more than booked is learned, and told in the keeper's log alone."""
    caplog.set_level(logging.INFO, "keepwarm.keeper")
    with bench.open() as shim:
        placement = build_catalog(shim.config).prepared["a"].placements[0]
        part = placement.footprints[HOST]
        more = placement.total_bytes - part.overhead_bytes + placement.total_bytes // 50
        bench.scripts["a"] = Script(buffers={HOST: more})
        shim.load("a")
        assert booked(shim, "a") == more + part.overhead_bytes
    assert [r.levelname for r in caplog.records if "learned" in r.getMessage()] == ["INFO"]


def test_a_learned_argument_changes_the_next_admission(bench: Bench) -> None:
    """Two models fit beside each other by the estimate; with what was learned one makes room."""
    bench.entries["a"]["engine_args"] = ["--spec-type", "ngram-simple"]
    with bench.open() as shim:
        shim.load("a")
        shim.load("b")
        assert booked(shim, "a")
        assert booked(shim, "b")
    bench.scripts["a"] = Script(buffers={HOST: 185 * MIB})
    with bench.open() as shim:
        shim.load("a")
    with bench.open() as shim:
        shim.load("b")
        shim.load("a")
        assert booked(shim, "a") > 185 * MIB
        assert booked(shim, "b") == 0
    del bench.entries["a"]["engine_args"]
    with bench.open() as shim:
        assert build_catalog(shim.config).prepared["a"].placements[0].source != "engine"


def test_a_correction_over_the_limit_admits_nothing_and_evicts_what_is_idle(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The device is over its limit while the grown engine is in use, and says so; then it is not."""
    caplog.set_level(logging.WARNING, "keepwarm.keeper")
    memory = {HOST: 30 * MIB}
    bench.scripts["a"] = Script(memory=memory, tokens=["word "] * 100_000)
    with bench.open() as shim:
        shim.load("b")
        stream = shim.stream("a", "Hello.")
        next(stream)
        memory[HOST] = 250 * MIB
        assert wait_until(lambda: shim.status()["devices"][0]["over_limit"])
        assert wait_until(lambda: booked(shim, "b") == 0)
        with ThreadPoolExecutor(1) as pool, pytest.raises(DeadlineExceeded):
            pool.submit(shim.chat, "b", "Hello.", deadline_s=0.2).result()
        stream.close()
        assert wait_until(lambda: not shim.status()["devices"][0]["over_limit"])
        assert booked(shim, "a") == 0
    assert any("over its limit" in r.getMessage() for r in caplog.records)


def test_a_warm_engine_that_takes_less_is_booked_less_the_next_time(bench: Bench) -> None:
    """Never while the engine runs, because it may still use bytes that it has not used yet."""
    with bench.open() as shim:
        part = build_catalog(shim.config).prepared["a"].placements[0].footprints[HOST]
        buffers = part.total_bytes - part.overhead_bytes
        bench.scripts["a"] = Script(memory={HOST: buffers + MIB})
        for _ in range(3):
            shim.chat("a", "Hello.")
        folder = default_folder()
        assert wait_until(lambda: any(folder.glob("*.json")))
        assert booked(shim, "a") == part.total_bytes
        shim.unload("a")
        shim.load("a")
        assert booked(shim, "a") == buffers + MIB
