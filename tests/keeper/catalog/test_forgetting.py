"""What was learned of an engine's bytes: a peak fades, has a date, and can be forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.footprint.learned import LearnedBytes, LearnedStore
from backends.gguf import read_header
from backends.scripted import Script
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim import NeverFits
from shim.cli import main
from shim.cli.commands.inspect.learned_lines import learned_lines, learned_on
from shim.keeper.catalog import refresh
from shim.keeper.catalog.corrections import Corrections, Seen, learned_store
from shim.keeper.engines import monitor as monitor_module
from tests.keeper.catalog.test_corrections import Bench, booked
from tests.keeper.engines.test_monitor import monitor_of, one_idle
from tests.races.support import race, run

PLACED = Placement(EngineArgs(n_ctx=512), {HOST: Footprint(80, 10, 5, 5)}, "dry-run")
DAY_S = 24 * 3600
MIB = 1 << 20


class Clock:
    """UNIX seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def seen(measured: int, reported: int = 90) -> Seen:
    """An engine on the host as it was found."""
    return Seen({HOST: reported}, {HOST: measured}, 0)


def store_of(folder: Path, clock: Clock) -> LearnedStore:
    """A store with one peak: 300 bytes where 100 were estimated."""
    store = LearnedStore(folder, clock=clock)
    Corrections(store, "build").observe("m", "file", PLACED, seen(300))
    return store


def corrected(store: LearnedStore) -> int:
    """The bytes that the next load books."""
    known = store.get("file", PLACED.args, "build")
    assert known is not None
    return known.devices[HOST].corrected_bytes


@pytest.mark.parametrize(("days", "n_bytes"), [(0.9, 300), (7, 200), (14, 150), (3650, 100)])
def test_a_peak_that_is_not_seen_again_halves_each_week(
    days: float, n_bytes: int, tmp_path: Path
) -> None:
    """Down to the estimate: one oversized prompt does not keep a model out for good."""
    clock = Clock()
    store = store_of(tmp_path, clock)
    clock.now += days * DAY_S
    assert corrected(store) == n_bytes


def test_what_is_certain_does_not_fade() -> None:
    """Buffers that an engine reported, and bytes under the estimate."""
    reported = LearnedBytes(100, 5, 200, 300, 300)
    assert reported.faded(0.0).corrected_bytes == 205
    smaller = LearnedBytes(100, 5, 80, 85, 85)
    assert smaller.faded(0.0) == smaller


def test_a_peak_that_is_seen_again_keeps_its_bytes_and_gets_a_new_date(tmp_path: Path) -> None:
    """Written at most once a day; a smaller reading confirms nothing."""
    clock = Clock()
    store = store_of(tmp_path, clock)
    learned = store.get("file", PLACED.args, "build")
    assert learned is not None
    placed, corrections = learned.apply(PLACED), Corrections(store, "build")
    for days, found, total in ((0.5, 300, 0.5), (1, 120, 1.5), (0.5, 300, 2)):
        clock.now += days * DAY_S
        corrections.observe("m", "file", placed, seen(found))
        known = store.get("file", PLACED.args, "build")
        assert known is not None
        assert (known.at == int(clock.now)) == (total == 2)
    assert corrected(store) == 300


def test_forgetting_deletes_what_was_learned_of_one_file(tmp_path: Path) -> None:
    """For all arguments, and the keeper's own memory of it goes with the entry."""
    clock = Clock()
    store = store_of(tmp_path, clock)
    corrections = Corrections(store, "build")
    longer = replace(PLACED, args=replace(PLACED.args, n_ctx=1024))
    corrections.observe("m", "file", longer, seen(300))
    corrections.observe("other", "other file", PLACED, seen(300))
    assert store.forget("file") == 2
    assert store.get("file", PLACED.args, "build") is None
    assert store.get("other file", PLACED.args, "build") is not None
    assert store.marker("file").is_file()
    assert store.forget("file") == 0
    again = corrections.observe("m", "file", PLACED, seen(150))
    assert again.bookings == ((HOST, 150),), "the old peak of 300 is not brought back"


def test_inspect_shows_when_an_engine_was_found_to_take_it(tmp_path: Path) -> None:
    """As a day; entries of earlier versions have none."""
    clock = Clock()
    known = store_of(tmp_path, clock).get("file", PLACED.args, "build")
    assert known is not None
    assert learned_on(known) == "2001-09-09"
    assert learned_on(replace(known, at=0)) is None
    device = {"corrected_bytes": 300, "estimated_bytes": 100}
    row = {"differs": {}, "devices": {HOST: device}, "learned_on": "2001-09-09"}
    assert learned_lines({"corrections": [row]})[0].startswith("learned on 2001-09-09: ")


@pytest.fixture
def bench(tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Keepers with a state folder of their own, which look at files at each request."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(refresh, "LOOK_AGAIN_S", 0.0)
    return Bench(tiny_models)


def test_a_model_that_never_fits_by_what_was_learned_says_so_and_fits_once_it_is_forgotten(
    bench: Bench, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The running keeper takes it over with its next request."""
    file = tmp_path / "keepwarm.toml"
    file.write_text(f'[models.a]\npath = "{tiny_models["classifier"]}"\n')
    bench.scripts["a"] = Script(buffers={HOST: 250 * MIB})
    with bench.open() as shim:
        shim.load("a")
        shim.unload("a")
        bench.scripts["a"] = Script()
        with pytest.raises(NeverFits, match="was learned") as caught:
            shim.load("a")
        assert "keepwarm forget a" in caught.value.hint
        assert caught.value.facts["learned"] is True
        ran = CliRunner().invoke(main, ["--config", str(file), "forget", "a"])
        assert "1 figure is forgotten of a." in ran.output
        shim.load("a")
        assert booked(shim, "a") < 100 * MIB
    again = CliRunner().invoke(main, ["--config", str(file), "forget", "a", "--json"])
    assert '"forgotten": 0' in again.output


def test_an_estimate_that_never_fits_is_not_called_learned(bench: Bench) -> None:
    """Its hint names no command that would change nothing."""
    bench.limit = "20MiB"
    with bench.open() as shim, pytest.raises(NeverFits) as caught:
        shim.load("a")
    assert caught.value.facts["learned"] is False
    assert "forget" not in caught.value.hint


def test_a_model_at_an_endpoint_has_nothing_to_forget(tmp_path: Path) -> None:
    """The caller's mistake, in words."""
    file = tmp_path / "keepwarm.toml"
    file.write_text('[models.far]\nurl = "http://127.0.0.1:9"\n')
    ran = CliRunner().invoke(main, ["--config", str(file), "forget", "far"])
    assert ran.exit_code == 2
    assert "no GGUF file that runs here" in ran.output


def test_a_peak_is_learned_once_it_stands(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that still works for a client that is gone grows, and then gives its memory back."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: 1 << 40)
    identity = read_header(tiny_models["classifier"]).identity

    def kept() -> list[int]:
        return [row.devices[HOST].measured_bytes for row in learned_store().of_file(identity)]

    async def scenario() -> None:
        async with race(tiny_models) as it:
            amount = await one_idle(it)
            monitor = monitor_of(it.keeper)
            for times in (1.2, 1.3, 1.1):
                it.engine("a").script.memory = {HOST: int(amount * times)}
                await monitor.measure()
                assert kept() == []
            await monitor.measure()
            assert kept() == [int(amount * 1.1)]

    run(scenario)
