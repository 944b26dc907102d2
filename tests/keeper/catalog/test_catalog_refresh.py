"""The catalog of a running keeper: what is wrong with one model costs that model, and no other."""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.footprint.cache import FootprintCache
from backends.footprint.dry_run import DryRun
from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from budget import events as ev
from budget.errors import (
    BadModelFile,
    ConfigError,
    InternalError,
    LoadFailed,
    OutsideError,
    UnknownModel,
)
from budget.footprint import HOST, EngineArgs
from shim.keeper.catalog import catalog as catalogs
from shim.keeper.catalog import preparing, refresh
from shim.keeper.catalog.broken_models import FIRST_PAUSE_S, LONGEST_PAUSE_S, BrokenModel
from shim.keeper.server.server import Server
from shim.placement import requested as asking
from tests.keeper.catalog.changing import Changing, changing, config_of, model_bytes, run
from tests.keeper.server.test_server import Visitor


class Clock:
    """The clock of the catalog and its refresh."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """It stands still unless the test moves it."""
    clock = Clock()
    for module in ("shim.keeper.catalog.catalog", "shim.keeper.catalog.refresh"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are read, in order."""
    names: list[str] = []
    real = preparing.prepare

    def noted(name: str, *rest: Any) -> Any:
        names.append(name)
        return real(name, *rest)

    monkeypatch.setattr(catalogs, "prepare", noted)
    return names


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The files whose status is asked for."""
    names: set[str] = set()
    real = os.stat

    def noted(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        names.add(Path(path).name if isinstance(path, str | Path) else "")
        return real(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", noted)
        yield names


async def _refused(it: Changing, model: str) -> OutsideError:
    with pytest.raises((BadModelFile, LoadFailed)) as caught:
        await it.lease(model)
    return caught.value


def test_requests_for_a_broken_model_read_nothing_but_that_model(
    clock: Clock, read: list[str], looked_at: set[str]
) -> None:
    """Once for each pause; the file of no other model is even looked at."""

    async def scenario() -> None:
        async with changing("abc") as it:
            it.file("b").write_bytes(b"GGUF garbage")
            read.clear()
            looked_at.clear()
            for _ in range(20):
                await _refused(it, "b")
            assert read == ["b"]
            assert not {"a.gguf", "c.gguf"} & looked_at
            await it.serve("a")
            await it.serve("c")
            assert read == ["b"]

    run(scenario)


def test_warm_requests_ask_no_disk_for_a_second_after_a_look(
    clock: Clock, looked_at: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes meanwhile is seen by the first request after that, or by a load."""
    monkeypatch.setattr(refresh, "LOOK_AGAIN_S", 1.0)

    async def scenario() -> None:
        async with changing("ab") as it:
            first = await it.serve("a")
            looked_at.clear()
            for _ in range(20):
                clock.now_s += 0.04
                assert (await it.serve("a")).engine_id == first.engine_id
            assert looked_at == set()
            it.file("a").write_bytes(model_bytes("another", vocabulary=32))
            assert (await it.serve("a")).engine_id == first.engine_id
            clock.now_s += 0.21
            assert (await it.serve("a")).engine_id != first.engine_id
            assert "a.gguf" in looked_at

    run(scenario)


def test_the_pause_grows_with_every_failure_to_its_bound(clock: Clock, read: list[str]) -> None:
    """Half a second, doubled up to thirty; during it the stored error is the answer."""

    async def scenario() -> None:
        async with changing("ab") as it:
            it.file("b").write_bytes(b"GGUF garbage")
            error = await _refused(it, "b")
            pauses = []
            for _ in range(9):
                pauses.append(it.keeper.catalog.broken_models["b"].pause_s)
                read.clear()
                clock.now_s += pauses[-1] - 0.01
                refused = await _refused(it, "b")
                assert refused.message == error.message
                assert refused.retry_after_s == pytest.approx(0.01, abs=0.001)
                assert refused.hint.endswith("That failed, and is tried again in 0.1 s.")
                assert read == []
                clock.now_s += 0.02
                await _refused(it, "b")
                assert read == ["b"]
            assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
            assert (pauses[0], pauses[-1]) == (FIRST_PAUSE_S, LONGEST_PAUSE_S)

    run(scenario)


def test_a_file_that_changes_is_read_again_at_once(clock: Clock, read: list[str]) -> None:
    """However long the pause has grown; a failure of other bytes begins with the shortest."""

    async def scenario() -> None:
        async with changing("ab") as it:
            good = it.file("b").read_bytes()
            it.file("b").write_bytes(b"GGUF garbage")
            for _ in range(5):
                await _refused(it, "b")
                clock.now_s += LONGEST_PAUSE_S + 1
            it.file("b").write_bytes(b"GGUF other garbage")
            await _refused(it, "b")
            assert it.keeper.catalog.broken_models["b"].pause_s == FIRST_PAUSE_S
            it.file("b").write_bytes(good)
            await it.serve("b")
            assert it.keeper.catalog.errors == {}

    run(scenario)


def test_a_shard_or_a_side_file_that_comes_back_counts_as_a_change(tmp_path: Path) -> None:
    """What is watched of a broken model is every file that may be what is wrong."""
    config = config_of(
        tmp_path,
        {
            "m": {
                "path": str(tmp_path / "m-00001-of-00002.gguf"),
                "mmproj": str(tmp_path / "p.gguf"),
            }
        },
    )
    watched = [path.name for path in preparing.watched_files(config.models["m"])]
    assert watched == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "p.gguf"]
    many = config_of(tmp_path, {"m": {"path": str(tmp_path / "m-00001-of-99999.gguf")}})
    assert len(preparing.watched_files(many.models["m"])) <= 1000


def test_each_request_gets_an_error_of_its_own() -> None:
    """One that is raised again and again would collect the tracebacks of all."""
    broken = BrokenModel(BadModelFile("damaged.", file="m.gguf"))
    first, second = broken.raised(), broken.raised()
    assert first is not second
    assert first.to_wire() == second.to_wire() == broken.error.to_wire()


def _held(monkeypatch: pytest.MonkeyPatch, model: str) -> tuple[threading.Event, threading.Event]:
    """The next reading of one model waits: (it has begun, it may go on)."""
    begun, may_end = threading.Event(), threading.Event()
    real = vars(catalogs)["prepare"]

    def held(name: str, *rest: Any) -> Any:
        if name == model and not begun.is_set():
            begun.set()
            assert may_end.wait(60)
        return real(name, *rest)

    monkeypatch.setattr(catalogs, "prepare", held)
    return begun, may_end


def test_a_model_that_takes_long_to_read_holds_no_other_up(
    monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    """Other models are served and read, and however many wait for it, it is read once."""

    async def scenario() -> None:
        async with changing("abc") as it:
            begun, may_end = _held(monkeypatch, "b")
            read.clear()
            for name in "bc":
                os.utime(it.file(name))
            waiting = [asyncio.create_task(it.serve("b", f"c{i}")) for i in range(5)]
            await asyncio.to_thread(begun.wait, 30)
            await it.serve("a")
            await it.serve("c")
            waiting[0].cancel()
            await asyncio.sleep(0)
            may_end.set()
            for one in waiting[1:]:
                await one
            assert sorted(read) == ["b", "c"]

    run(scenario)


def test_a_deadline_holds_while_a_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears that its time is over; the next one finds the model read."""

    async def scenario() -> None:
        async with changing("ab") as it:
            server = Server(it.keeper, asyncio.Event())
            server.listen(it.keeper.runtime / "k.sock")
            visitor = Visitor(*await asyncio.open_unix_connection(it.keeper.runtime / "k.sock"))
            begun, may_end = _held(monkeypatch, "b")
            os.utime(it.file("b"))
            answer = await visitor.ask("lease", model="b", deadline_s=0.05)
            assert answer["error"]["error"] == "DeadlineExceeded"
            assert begun.is_set()
            may_end.set()
            answer = await visitor.ask("lease", model="b", deadline_s=30.0)
            await visitor.ask("status")
            assert answer["ok"]["lease"] in it.keeper.shell.core.state.leases
            visitor.writer.close()
            server.close()

    run(scenario)


def test_an_unexpected_error_is_that_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at a start and at a reload: the others are there."""
    real = preparing.prepare

    def odd(name: str, *rest: Any) -> Any:
        if name == "b":
            raise ZeroDivisionError("odd")
        return real(name, *rest)

    monkeypatch.setattr(catalogs, "prepare", odd)

    async def scenario() -> None:
        async with changing("ab") as it:
            assert isinstance(it.keeper.catalog.errors["b"], InternalError)
            await it.serve("a")
            await it.keeper.reload(it.keeper.config)
            with pytest.raises(InternalError, match="ZeroDivisionError: odd"):
                await it.lease("b")
            await it.serve("a")

    run(scenario)


def test_a_request_that_waits_hears_what_is_wrong_with_the_file() -> None:
    """Not that its model is unknown; and so does everything else that is asked of it."""

    async def scenario() -> None:
        async with changing("ab") as it:
            it.gate("b").clear()
            waiting = await it.ask("b")
            it.file("b").write_bytes(b"GGUF garbage")
            await _refused(it, "b")
            with pytest.raises(BadModelFile, match="version"):
                await waiting
            answer = it.keeper.status()["unavailable"]["b"]
            assert answer["error"] == "BadModelFile"
            with pytest.raises(BadModelFile):
                it.keeper.shell.post(ev.HintGiven("release", "b"))
            assert await it.keeper.until_gone("b", 1.0)

    run(scenario)


def test_a_model_that_is_broken_at_the_start_is_known_to_the_core() -> None:
    """What is asked of it without a lease hears the same."""

    async def scenario() -> None:
        async with changing("ab", b={"path": "/nowhere/b.gguf"}) as it:
            for _ in range(2):
                assert "not there" in (await _refused(it, "b")).message
            with pytest.raises(LoadFailed, match="not there"):
                it.keeper.shell.post(ev.HintGiven("unload", "b"))
            await it.serve("a")

    run(scenario)


def test_a_model_that_no_longer_fits_its_pin_is_broken_by_itself() -> None:
    """The core refuses the two pins together; the other goes on, and the good file comes back."""

    async def scenario() -> None:
        pinned = {"pin": True}
        async with changing("ab", a=pinned, b=pinned) as it:
            total = sum(p.placements[0].total_bytes for p in it.keeper.catalog.prepared.values())
            limit = {"device": "host", "limit": total, "reserve": 0}
            models = {
                name: {"path": str(it.file(name)), "context": 512, "pin": True} for name in "ab"
            }
            await it.keeper.reload(config_of(it.folder, models, budget=limit))
            good = it.file("b").read_bytes()
            it.file("b").write_bytes(model_bytes("b", vocabulary=20_000))
            with pytest.raises(ConfigError):
                await it.lease("b")
            await it.serve("a")
            it.file("b").write_bytes(good)
            await it.serve("b")

    run(scenario)


def test_a_reload_while_a_model_is_read_takes_the_new_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read for the entry before is dropped, and the request gets what is configured now."""

    async def scenario() -> None:
        async with changing("ab") as it:
            begun, may_end = _held(monkeypatch, "b")
            os.utime(it.file("b"))
            waiting = asyncio.create_task(it.serve("b"))
            await asyncio.to_thread(begun.wait, 30)
            models = {
                "a": {"path": str(it.file("a")), "context": 512},
                "b": {"path": str(it.file("b")), "context": 256},
            }
            answer = await it.keeper.reload(config_of(it.folder, models))
            assert answer["changed"] == ["b"]
            may_end.set()
            grant = await waiting
            engine = it.keeper.catalog.engines[grant.engine_id]
            assert engine.placements[0].args.n_ctx == 256

    run(scenario)


def test_a_model_that_is_removed_while_it_is_read_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not an error of ours."""

    async def scenario() -> None:
        async with changing("ab") as it:
            begun, may_end = _held(monkeypatch, "b")
            os.utime(it.file("b"))
            waiting = asyncio.create_task(it.serve("b"))
            await asyncio.to_thread(begun.wait, 30)
            models = {"a": {"path": str(it.file("a")), "context": 512}}
            assert (await it.keeper.reload(config_of(it.folder, models)))["removed"] == ["b"]
            may_end.set()
            with pytest.raises(UnknownModel):
                await waiting
            await it.serve("a")
            it.check()

    run(scenario)


def test_a_disk_that_does_not_answer_holds_up_its_own_models_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files on another machine are asked about in a thread, one for each model however many ask."""
    asked, answers = threading.Event(), threading.Event()
    real = asking.stamp_of
    threads: list[str] = []

    def hangs(paths: Any) -> Any:
        if any(Path(path).name == "b.gguf" for path in paths) and not answers.is_set():
            threads.append(threading.current_thread().name)
            asked.set()
            assert answers.wait(60)
        return real(paths)

    def is_b(entry: Any, _files: Any) -> bool:
        return Path(entry.path).name == "b.gguf"

    monkeypatch.setattr(preparing, "lie_far", is_b)
    monkeypatch.setattr(catalogs, "lie_far", is_b)

    async def scenario() -> None:
        async with changing("ab") as it:
            await it.serve("b")
            monkeypatch.setattr(catalogs, "stamp_of", hangs)
            waiting = asyncio.create_task(it.serve("b"))
            await asyncio.to_thread(asked.wait, 30)
            await it.serve("a")
            await it.keeper.reload(it.keeper.config)
            monkeypatch.setattr("shim.keeper.catalog.refresh.READ_LIMIT_S", 0.05)
            for _ in range(3):
                with pytest.raises(LoadFailed, match="could not be read within"):
                    await it.serve("b")
            assert len(threads) == 1
            assert threads[0] != threading.main_thread().name
            answers.set()
            await waiting
            monkeypatch.undo()
            await it.serve("b")
            it.check()

    run(scenario)


def test_what_was_corrected_while_others_were_read_stays_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reload takes what is known when it ends, not what was known when it began."""

    async def scenario() -> None:
        async with changing("ab") as it:
            begun, may_end = _held(monkeypatch, "b")
            os.utime(it.file("b"))
            reloading = asyncio.create_task(it.keeper.reload(it.keeper.config))
            await asyncio.to_thread(begun.wait, 30)
            before = it.keeper.catalog
            known = before.prepared["a"]
            corrected = replace(known.placements[0], reason="corrected")
            before.correct(known.engine_id, 0, corrected)
            may_end.set()
            await reloading
            assert it.keeper.catalog is not before
            assert it.keeper.catalog.prepared["a"].placements[0].reason == "corrected"
            assert it.keeper.catalog.engines[known.engine_id].placements[0].reason == "corrected"

    run(scenario)


def test_engines_of_files_that_are_gone_are_dropped() -> None:
    """A file that is touched for weeks leaves one engine, not thousands."""

    async def scenario() -> None:
        async with changing("ab") as it:
            for count in range(1, 30):
                os.utime(it.file("b"), ns=(count, count))
                await it.serve("b")
            assert len(it.keeper.catalog.engines) <= 4
            it.check()

    run(scenario)


def test_a_file_that_changes_right_after_it_was_read_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is remembered of it is what was read, not what has become of it since."""
    real = vars(preparing)["placements"]

    async def scenario() -> None:
        async with changing("ab") as it:

            def replaced_meanwhile(*args: Any, **more: Any) -> Any:
                found = real(*args, **more)
                monkeypatch.undo()
                it.file("b").write_bytes(model_bytes("another", vocabulary=32))
                return found

            os.utime(it.file("b"))
            monkeypatch.setattr(preparing, "placements", replaced_meanwhile)
            grant = await it.serve("b")
            header = read_header(it.file("b"))
            assert it.keeper.catalog.engines[grant.engine_id].identity == header.identity

    run(scenario)


def test_a_thread_that_cannot_be_started_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request tries again."""

    async def scenario() -> None:
        async with changing("ab") as it:
            os.utime(it.file("b"))

            def refuses(*_: Any) -> None:
                raise RuntimeError("can't start new thread")

            with monkeypatch.context() as patch:
                patch.setattr(_thread, "start_new_thread", refuses)
                with pytest.raises(LoadFailed, match="can't start new thread"):
                    await it.serve("b")
            await it.serve("b")

    run(scenario)


def test_a_file_that_is_replaced_while_it_is_measured_is_not_taken_for_the_other(
    tmp_path: Path,
) -> None:
    """Figures of one file are never kept under another one's name."""
    path = tmp_path / "m.gguf"
    path.write_bytes(model_bytes("m"))
    header = read_header(path)
    inspector = Inspector(FootprintCache(tmp_path / "cache"), build="build")

    def replaced(*_: Any) -> DryRun:
        new = tmp_path / "new"
        new.write_bytes(model_bytes("other"))
        new.rename(path)
        return DryRun((), 0, 0, 2, 512, 0.0)

    inspector.measure = replaced
    with pytest.raises(BadModelFile, match="replaced or written to"):
        inspector.placement(header, EngineArgs(n_ctx=512), HOST, "dry-run")
    assert not list((tmp_path / "cache").glob("*.json"))
