"""A keeper that may open few files serves newcomers, or refuses them in words."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.flows import run_blocking
from backends.machine import processes
from backends.machine.processes import has_all_files_it_may, open_files
from budget.errors import KeeperUnavailable, QueueFull
from shim.keeper.server import listener as listener_module
from shim.wire import silence
from shim.wire.json_lines import VERSION, encode
from shim.wire.keeper_connection import KeeperConnection
from shim.wire.threads import SocketChannel
from tests.keeper.server.test_server import Files, serving
from tests.keeper.support import World, world
from tests.races.support import run

LIMIT = 256
STARTS = 'ulimit -n "$1"; exec "$2" -m shim.cli keeper start'
LOOKS = """
try:
    say(models=[row["models"] for row in s.status()["engines"]])
except shim.KeepwarmError as error:
    say(error=type(error).__name__, message=str(error))
"""


@pytest.fixture
def narrow(tiny_models: Files) -> Iterator[World]:
    """A keeper whose process may have 256 open files, and no more."""
    with world() as place:
        place.configure(
            {"a": {"path": str(tiny_models["classifier"]), "context": 512}}, budget={"reserve": 0}
        )
        subprocess.run(
            ["sh", "-c", STARTS, "sh", str(LIMIT), sys.executable],
            env=place.env,
            check=True,
            capture_output=True,
            timeout=60,
        )
        yield place


def _visit(place: World, *messages: dict[str, Any]) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX)
    visitor.settimeout(60)
    visitor.connect(str(place.runtime / "keeper.sock"))
    hello = {"op": "hello", "id": 0, "version": VERSION}
    with contextlib.suppress(BrokenPipeError):
        visitor.sendall(b"".join(map(encode, (hello, *messages))))
    return visitor


def _said(visitor: socket.socket) -> list[dict[str, Any]]:
    """All that was said until the keeper closed the connection, or until it answered a `plan`."""
    with visitor.makefile("rb") as lines:
        said = []
        with contextlib.suppress(ConnectionResetError):
            for line in lines:
                said.append(json.loads(line))
                if said[-1].get("id") == 1:
                    break
        return said


@pytest.mark.real
def test_idle_connections_beyond_half_of_the_descriptors_give_way_at_once(narrow: World) -> None:
    """Far more of them than descriptors: the oldest are closed, and a command is answered."""
    pid = narrow.keeper_pid()
    with contextlib.ExitStack() as open_ones:
        visitors = [open_ones.enter_context(_visit(narrow)) for _ in range(400)]
        assert narrow.client(LOOKS).hear() == {"models": [["a"]]}
        files = open_files(pid)
        assert files is not None
        assert files < LIMIT * 3 // 4
        assert [message["id"] for message in _said(visitors[0])] == [0]


@pytest.mark.real
def test_a_newcomer_is_refused_in_words_where_every_connection_holds_something(
    narrow: World,
) -> None:
    """It hears of connections, through a client's `Shim`, too; one that ends makes room for it."""
    plan = {"op": "plan", "id": 1, "models": ["a"]}
    with contextlib.ExitStack() as open_ones:
        visitors = [open_ones.enter_context(_visit(narrow, plan)) for _ in range(LIMIT)]
        said = [_said(visitor)[-1] for visitor in visitors]
        refused = [message for message in said if message.get("notice") == "refused"]
        assert LIMIT // 2 <= len(refused) < LIMIT
        assert all(message["error"]["error"] == "QueueFull" for message in refused)
        heard = narrow.client(LOOKS).hear()
        assert heard["error"] == "QueueFull"
        assert "connections to the keeper" in heard["message"]
        for visitor in visitors:
            visitor.close()
        assert narrow.client(LOOKS).hear() == {"models": [["a"]]}


@pytest.mark.parametrize("idle", [True, False])
def test_a_newcomer_is_served_or_refused_where_no_descriptor_is_left(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """Other uses than connections may take them all: an idle connection goes, or the newcomer hears why."""
    real_accept = socket.socket.accept
    failures: list[int] = []

    def accept(self: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return real_accept(self)

    async def scenario() -> None:
        monkeypatch.setattr(listener_module, "PAUSE_S", 1e9)
        async with serving(tiny_models, runtime_dir) as at:
            first = await at.visit()
            if not idle:
                assert "ok" in await first.ask("plan", models=["a"])
            monkeypatch.setattr(socket.socket, "accept", accept)
            failures.append(errno.EMFILE)
            second = await at.visit()
            if idle:
                assert await second.is_served()
                assert await first.reader.read() == b""
            else:
                assert (await second.hear())["error"]["error"] == "QueueFull"
                assert await (await at.visit()).is_served()

    run(scenario)


def test_a_turn_with_many_newcomers_closes_as_many_idle_connections(
    tiny_models: Files, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one and the same connection for each of them."""

    async def scenario() -> None:
        monkeypatch.setattr(listener_module, "connection_limit", lambda _others: 10)
        async with serving(tiny_models, runtime_dir) as at:
            newcomers = []
            for _ in range(50):
                newcomers.append(socket.socket(socket.AF_UNIX))
                newcomers[-1].connect(str(at.path))
            assert await (await at.visit()).is_served()
            assert at.server.clients.connected <= 10
            for newcomer in newcomers:
                newcomer.close()

    run(scenario)


@pytest.mark.parametrize(
    ("others", "soft", "limit"), [(56, 256, 100), (200, 64, 16), (9, -1, 8192)]
)
def test_clients_get_half_of_what_other_descriptors_leave(
    monkeypatch: pytest.MonkeyPatch, others: int, soft: int, limit: int
) -> None:
    """Engines, files and threads of the keeper need descriptors, too."""
    monkeypatch.setattr(resource, "getrlimit", lambda _number: (soft, soft))
    assert listener_module.connection_limit(others) == limit


def test_a_client_hears_the_refusal_although_its_hello_came_too_late() -> None:
    """The keeper had refused and closed the connection before the client wrote."""
    ours, theirs = socket.socketpair()
    error = QueueFull("full", hint="wait")
    theirs.sendall(encode({"notice": "refused", "error": error.to_wire()}))
    theirs.close()
    with pytest.raises(QueueFull, match="full"):
        run_blocking(KeeperConnection(SocketChannel(ours)).ask("hello", version=VERSION))
    ours.close()


def test_a_keeper_without_descriptors_is_not_to_be_killed(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    """It goes on as soon as connections close."""
    monkeypatch.setattr(silence, "holds_keeper_lock", lambda _pid, _folder: True)

    def told() -> KeeperUnavailable:
        return silence.keeper_silent(os.getpid(), runtime_dir, 5.0)

    assert "kill -9" in told().hint
    assert not has_all_files_it_may(os.getpid())
    monkeypatch.setattr(processes, "FEW_FILES", 1 << 40)
    assert has_all_files_it_may(os.getpid())
    assert "kill" not in told().hint
    assert "open files" in told().hint
