"""Calls through the shim: replies, streams, leases that come back, threads, tasks and forks."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore
import pytest

from backends import flows
from backends.scripted import Script, ScriptedEngine
from shim import (
    ConfigError,
    EndpointUnavailable,
    EngineDied,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    Shim,
    UnknownModel,
)
from shim.calls.streaming import held_stream
from shim.keeper.keeper import Keeper
from shim.wire.threads import SocketChannel
from tests.processes import wait_until
from tests.shim.conftest import Stage


def test_a_reply_says_what_it_took(stage: Stage) -> None:
    """The first request is cold with load seconds, the second is warm."""
    first = stage.shim.chat("a", "Hello.")
    assert first.content == "one two three"
    assert str(first) == first.content
    assert first.residency.cold
    assert first.residency.load_s > 0
    assert first.residency.slot == 0
    second = stage.shim.chat("a", [{"role": "user", "content": "Hello."}])
    assert not second.residency.cold
    assert second.residency.load_s == 0
    assert second.residency.storage == "warm"


def test_a_stream_gives_pieces_and_then_the_whole(stage: Stage) -> None:
    """Pieces as they come; the reply is their sum; the lease is back at the end."""
    with stage.shim.stream("a", "Hello.") as stream:
        with pytest.raises(InvalidRequest, match="not at its end"):
            _ = stream.reply
        pieces = [str(piece) for piece in stream]
    assert "".join(pieces) == "one two three" == stream.reply.content
    assert stream.reply.ttft_s is not None
    assert stage.lease_count() == 0


@pytest.mark.parametrize(
    ("where", "name"), [(held_stream, "running_loop"), (flows.BlockingStream, "__init__")]
)
def test_an_interrupt_while_a_stream_is_made_leaves_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    """The interrupt comes out as itself, the lease is back, and no half stream complains when it goes."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(where, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.shim.stream("a", "Hello.")
    gc.collect()
    assert complaints == []
    assert wait_until(lambda: stage.lease_count() == 0)
    assert stage.shim.chat("a", "Hello.").content == "one two three"


def test_closing_an_unfinished_stream_gives_the_lease_back(stage: Stage) -> None:
    """The engine's connection closes and the slot is free for others."""
    stage.scripts["a"] = Script(tokens=["word "] * 10_000)
    stream = stage.shim.stream("a", "Hello.")
    next(stream)
    assert stage.lease_count() == 1
    stream.close()
    stream.close()
    assert stage.lease_count() == 0
    assert next(stream, None) is None


def test_an_answer_whose_text_does_not_fit_any_more_begins_anew(stage: Stage) -> None:
    """Its text can be more tokens than were generated; the lease is back, and no error is raised."""
    stage.scripts["a"] = Script(tokens=["word "] * 10_000)
    stream = stage.shim.stream("a", "Hello.")
    while len(stream.text) < 10:
        next(stream)
    stream.close()
    error = {"message": "too long", "type": "exceed_context_size_error", "code": 400}
    stage.engines[-1].script.refuse = (400, {"error": error})
    assert stream.go_on() is None
    assert stage.lease_count() == 0


REFUSED = {"message": "Unable to generate parser for this template: std::bad_alloc", "code": 400}


@pytest.mark.parametrize("streamed", [False, True])
def test_an_engine_that_was_refused_memory_is_an_error_with_the_bytes(
    stage: Stage, *, streamed: bool
) -> None:
    """The engine names none; the keeper knows what is booked, what it may take, and what it takes."""
    stage.scripts["a"] = Script(refuse=(400, {"error": REFUSED}), memory={"host": 4711})
    with pytest.raises(OutOfMemory, match="Unable to generate parser") as caught:
        list(stage.shim.stream("a", "Hi.")) if streamed else stage.shim.chat("a", "Hi.")
    facts = caught.value.facts
    assert facts["found_bytes"] == 4711
    for name in ("booked_bytes", "ceiling_bytes", "found_bytes"):
        assert f"{facts[name]} bytes" in caught.value.message
    assert stage.lease_count() == 0


def test_an_engine_that_was_refused_memory_and_is_ended_is_an_error_with_the_keepers_reason(
    stage: Stage,
) -> None:
    """What the engine answered first says less than why it is ended."""
    ended = OutOfMemory("a took 9 bytes of host", found_bytes=9)
    stage.scripts["a"] = Script(refuse=(400, {"error": REFUSED}), overgrown=ended)
    with pytest.raises(OutOfMemory, match="took 9 bytes of host") as caught:
        stage.shim.chat("a", "Hi.")
    assert caught.value.facts["found_bytes"] == 9


def test_an_unclosed_stream_gives_the_lease_back(stage: Stage) -> None:
    """A stream that goes out of scope is closed."""
    stage.scripts["a"] = Script(tokens=["word "] * 10_000)
    next(stage.shim.stream("a", "Hello."))
    assert stage.lease_count() == 0


def test_an_engine_that_dies_is_reported_with_its_last_lines(stage: Stage) -> None:
    """The keeper's account replaces the broken connection; the next call works."""
    stage.scripts["a"] = Script(tokens=["word "] * 50, die_after=3)
    with pytest.raises(EngineDied) as caught:
        list(stage.shim.stream("a", "Hello."))
    assert caught.value.facts["log_tail"] == ["scripted: last line"]
    assert caught.value.facts["model"] == "a"
    stage.scripts.clear()
    assert stage.shim.chat("a", "Hello.").residency.cold


def test_a_death_is_reported_once_the_next_start_can_begin(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing a dead engine away may take longer than watching one that seems well."""
    monkeypatch.setattr("shim.keeper.server.clients.DIAGNOSE_LIMIT_S", 0.0)
    stop, is_up, asked = ScriptedEngine.stop, Keeper.is_up, asyncio.Event()
    looks = iter(range(10_000))

    async def late(engine: ScriptedEngine, *, grace_s: float) -> None:
        await asked.wait()
        await stop(engine, grace_s=grace_s)

    def looked(keeper: Keeper, engine_id: str, generation: int) -> bool:
        if next(looks) == 3:
            asked.set()
        return is_up(keeper, engine_id, generation)

    monkeypatch.setattr(Keeper, "is_up", looked)
    monkeypatch.setattr(ScriptedEngine, "stop", late)
    stage.scripts["a"] = Script(tokens=["word "] * 50, die_after=3)
    with pytest.raises(EngineDied) as caught:
        list(stage.shim.stream("a", "Hello."))
    assert caught.value.facts["log_tail"] == ["scripted: last line"]
    rows = {row["models"][0]: row for row in stage.shim.status()["engines"]}
    assert rows["a"]["state"] == "failed"


def test_a_load_that_fails_is_an_error_with_the_books_balanced(stage: Stage) -> None:
    """Nothing stays booked, and the next call tries again."""
    stage.scripts["a"] = Script(load="fail")
    with pytest.raises(LoadFailed, match="told not to"):
        stage.shim.chat("a", "Hello.")
    assert stage.shim.status()["devices"][0]["reserved_bytes"] == 0
    stage.scripts.clear()
    assert stage.shim.chat("a", "Hello.").content == "one two three"


def test_pins_loads_and_releases(stage: Stage) -> None:
    """`load` makes resident, `pin` protects, `unload` waits until it is gone."""
    stage.shim.load("a")
    assert not stage.shim.chat("a", "Hello.").residency.cold
    stage.shim.pin("b")
    rows = {row["models"][0]: row for row in stage.shim.status()["engines"]}
    assert rows["b"]["pinned_by"] == ["b"]
    stage.shim.unpin("b")
    stage.shim.release("b")
    assert stage.shim.unload("b")
    rows = {row["models"][0]: row for row in stage.shim.status()["engines"]}
    assert rows["b"]["state"] == "absent"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.chat("c", "Hi"), UnknownModel, "a, b, remote"),
        (lambda s: s.chat("a", "Hi", priority="high"), InvalidRequest, "integer"),
        (lambda s: s.chat("a", "Hi", deadline_s=0), InvalidRequest, "above 0"),
        (lambda s: s.chat("a", "Hi", temprature=1), InvalidRequest, "temprature"),
        (lambda s: s.chat("a", []), InvalidRequest, "message"),
        (lambda s: s.embed("a", []), InvalidRequest, "non-empty"),
        (lambda s: s.embed("a", "x", max_tokens=1), InvalidRequest, "max_tokens"),
        (lambda s: s.chat("remote", "Hi"), EndpointUnavailable, "far"),
    ],
)
def test_wrong_calls_are_typed_errors_and_hold_nothing(
    stage: Stage, call: Any, error: type[Exception], words: str
) -> None:
    """Every mistake says what was found and what is allowed; no lease stays behind."""
    with pytest.raises(error, match=words):
        call(stage.shim)
    assert stage.lease_count() == 0


def test_embeddings_come_in_the_order_of_the_texts(stage: Stage) -> None:
    """One vector per text."""
    reply = stage.shim.embed("a", ["x", "y"])
    assert len(reply.vectors) == 2
    assert stage.shim.embed("a", "x").vectors == reply.vectors[:1]


def test_many_threads_share_one_shim(stage: Stage) -> None:
    """Answers go back to their own callers, and every lease comes back."""
    barrier = threading.Barrier(8)

    def work(number: int) -> list[str]:
        barrier.wait()
        return [stage.shim.chat("ab"[number % 2], f"{number}").model for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    assert answers == [["ab"[number % 2]] * 10 for number in range(8)]
    assert stage.lease_count() == 0


async def until_waiting(stage: Stage) -> None:
    """Return once a request waits at the keeper."""
    for _ in range(10_000):
        if (await asyncio.to_thread(stage.shim.status))["queue"]:
            return
    raise AssertionError("nothing ever waited")


def test_tasks_share_one_shim_and_cancelling_gives_the_lease_back(stage: Stage) -> None:
    """The async calls give the same replies; a cancelled one holds nothing."""

    async def main() -> None:
        replies = await asyncio.gather(*(stage.shim.achat("a", f"{i}") for i in range(6)))
        assert {r.content for r in replies} == {"one two three"}
        stream = await stage.shim.astream("a", "Hello.")
        assert "".join([str(piece) async for piece in stream]) == "one two three"
        assert stream.reply.content == "one two three"
        assert len((await stage.shim.aembed("a", ["x"])).vectors) == 1

    asyncio.run(main())
    stage.shim.unload("a")
    gate = asyncio.Event()
    stage.scripts["a"] = Script(load_gate=gate)

    async def cancelled() -> None:
        task = asyncio.create_task(stage.shim.achat("a", "Hello."))
        await until_waiting(stage)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert wait_until(lambda: stage.shim.status()["queue"] == [])


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupted_call_closes_its_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, streamed: bool
) -> None:
    """Ctrl-C while a lease or an answer is waited for: nothing is held, the next call works."""

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    def call() -> str:
        if streamed:
            return "".join(str(piece) for piece in stage.shim.stream("a", "Hello."))
        return stage.shim.chat("a", "Hello.").content

    assert call() == "one two three"
    lines = stage.shim._session.connections.flows
    for owner, wait in ((SocketChannel, "read"), (httpcore.HTTPConnection, "handle_request")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, wait, interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert len(lines.idle) == 0
        assert wait_until(lambda: stage.lease_count() == 0)
        assert call() == "one two three"


def test_a_forked_child_makes_its_own_connections(stage: Stage) -> None:
    """The child's calls work, and its end takes nothing from the parent."""
    stage.shim.chat("a", "Hello.")
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        inherited = len(stage.shim._session.connections.flows.idle)
        try:
            os.write(write_fd, stage.shim.chat("a", "Hi").content.encode())
        finally:
            os._exit(inherited)
    os.close(write_fd)
    assert os.waitpid(pid, 0)[1] == 0, "no connection of the parent's is left in the child"
    assert os.read(read_fd, 100) == b"one two three"
    os.close(read_fd)
    assert stage.shim.chat("a", "Hello again.").content == "one two three"
    assert stage.lease_count() == 0


def test_a_shim_needs_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """With none to be found the error says where it looked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEEPWARM_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"keepwarm\.toml"):
        Shim()
