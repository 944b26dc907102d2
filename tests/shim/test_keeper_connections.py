"""A connection to the keeper over both kinds of channel: the same flow on a thread and on a loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from backends.flows import run_blocking
from shim import KeeperUnavailable, UnknownModel
from shim.wire.event_loops import LoopChannel, LoopConnectionPool
from shim.wire.json_lines import encode
from shim.wire.keeper_connection import KeeperConnection
from shim.wire.threads import SocketChannel

Scenario = Callable[[KeeperConnection, socket.socket], Coroutine[Any, Any, None]]


def on_a_thread(scenario: Scenario) -> None:
    """Run a scenario over a blocking socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        run_blocking(scenario(KeeperConnection(SocketChannel(ours)), theirs))


def on_a_loop(scenario: Scenario) -> None:
    """Run a scenario on an event loop."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            line = KeeperConnection(LoopChannel(ours))
            await scenario(line, theirs)
            line.close()

    asyncio.run(main())


either_way = pytest.mark.parametrize("run", [on_a_thread, on_a_loop])


@either_way
def test_an_answer_finds_its_question(run: Callable[[Scenario], None]) -> None:
    """Notices, and answers that no call waits for any more, are passed over; errors are raised."""

    async def scenario(line: KeeperConnection, keeper: socket.socket) -> None:
        keeper.sendall(encode({"notice": "yield"}) + encode({"id": 1, "ok": {"n": 1}}))
        assert await line.ask("one") == {"n": 1}
        late, error = {"id": 1, "ok": {}}, UnknownModel("No model.").to_wire()
        keeper.sendall(encode(late) + encode({"id": 2, "error": error}))
        with pytest.raises(UnknownModel):
            await line.ask("two")

    run(scenario)


@either_way
def test_a_notice_that_came_right_behind_an_answer_is_seen(run: Callable[[Scenario], None]) -> None:
    """It was read together with the answer, and no byte will follow it."""

    async def scenario(line: KeeperConnection, keeper: socket.socket) -> None:
        keeper.sendall(encode({"id": 1, "ok": {}}) + encode({"notice": "yield", "lease": "r1"}))
        await line.ask("lease")
        assert line.notices() == [{"notice": "yield", "lease": "r1"}]
        assert line.notices() == []

    run(scenario)


@either_way
def test_half_a_notice_is_kept_for_the_next_look(run: Callable[[Scenario], None]) -> None:
    """Lines are whole, however their bytes come."""
    notice = encode({"notice": "yield", "lease": "r1"})

    async def scenario(line: KeeperConnection, keeper: socket.socket) -> None:
        keeper.sendall(encode({"id": 1, "ok": {}}) + notice[:9])
        await line.ask("lease")
        assert line.notices() == []
        keeper.sendall(notice[9:] + encode({"id": 2, "ok": {}}))
        found: list[Any] = []
        while not found:
            found = line.notices()
        assert found[0] == {"notice": "yield", "lease": "r1"}

    run(scenario)


@either_way
def test_a_keeper_that_is_gone_is_said_so(run: Callable[[Scenario], None]) -> None:
    """Whether its answer is waited for or not."""

    async def scenario(line: KeeperConnection, keeper: socket.socket) -> None:
        keeper.shutdown(socket.SHUT_WR)
        with pytest.raises(KeeperUnavailable):
            await line.ask("status")
        with pytest.raises(KeeperUnavailable):
            line.notices()

    run(scenario)


def test_the_end_of_an_event_loop_waits_for_no_keeper_that_starts() -> None:
    """A call that is cancelled while its keeper starts is over; the connection that comes of it closes."""
    starts, (ours, theirs) = threading.Event(), socket.socketpair()

    def connect() -> socket.socket:
        assert starts.wait(60)
        return ours

    async def greeted(_: KeeperConnection) -> None: ...

    async def main() -> None:
        asked = asyncio.create_task(LoopConnectionPool(connect, greeted).new())
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(main())
    assert not starts.is_set()
    starts.set()
    theirs.settimeout(60)
    assert theirs.recv(1) == b""
    theirs.close()
