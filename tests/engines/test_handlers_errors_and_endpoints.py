"""Errors of a signal's handler on the way to an endpoint: its name, connecting, waiting for bytes."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn

import pytest

from backends.machine.callers_errors import raise_callers
from backends.openai import SyncTransport, Timeouts
from budget.errors import EngineDied, EngineTimeout
from tests.engines.hostile import ASK, head, listening, read_request, says
from tests.engines.test_resolving import named

KINDS = [TimeoutError, OSError, ConnectionResetError, BlockingIOError, ValueError]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def client() -> Iterator[SyncTransport]:
    """A client that is closed in the end."""
    transport = SyncTransport()
    yield transport
    transport.close()


@each_kind
@pytest.mark.parametrize("where", ["connect", "getaddrinfo wait"])
def test_an_error_while_connecting_is_no_endpoint_that_is_away(
    client: SyncTransport,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    where: str,
) -> None:
    """Neither the next address nor the next attempt is tried, and the next call connects."""
    error, raised = kind("the handler's own"), []

    def handler(*_: object) -> NoReturn:
        raised.append(error)
        raise error

    with listening(says(head(), b'{"choices":[{"message":{"content":"ok"}}]}')) as endpoint:
        with monkeypatch.context() as patch:
            if where == "connect":
                patch.setattr(socket.socket, "connect", handler)
            else:
                patch.setattr(Future, "result", handler)
                endpoint_asked = named(endpoint)
            with pytest.raises(kind) as caught:
                client.chat(endpoint if where == "connect" else endpoint_asked, ASK)
        assert caught.value is error
        assert raised == [error]
        assert client.chat(endpoint, ASK).content == "ok"


@each_kind
def test_an_error_while_an_endpoint_answers_is_no_time_out(
    client: SyncTransport, runtime_dir: Path, kind: type[Exception]
) -> None:
    """A real signal, on an engine's socket; the engine sees its connection closed."""
    error = kind("the handler's own")
    main, gone = threading.main_thread().ident or 0, threading.Event()

    def handler(*_: object) -> NoReturn:
        raise error

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        signal.pthread_kill(main, signal.SIGUSR1)
        assert connection.recv(1) == b""
        gone.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with listening(serve, runtime_dir / "e.sock") as endpoint:
            with pytest.raises(kind) as caught:
                client.chat(endpoint, ASK)
            assert gone.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value is error


def test_a_time_out_before_its_time_is_not_the_engines(
    client: SyncTransport, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that another thread put into this one came through no frame of a handler; the clock tells."""
    error = TimeoutError("from another thread")

    def at_once(*_: object) -> NoReturn:
        raise error

    # As if the system call had raised it.
    monkeypatch.setitem(globals(), "__name__", "socket")
    monkeypatch.setattr(socket.socket, "recv", at_once)
    with (
        listening(says(then_wait=True), runtime_dir / "e.sock") as endpoint,
        pytest.raises(TimeoutError) as caught,
    ):
        client.chat(endpoint, ASK)
    assert caught.value is error


def test_what_the_connection_itself_fails_with_is_still_the_engines(
    client: SyncTransport, runtime_dir: Path
) -> None:
    """A connection that breaks is a dead engine, and a wait that lasts too long is a time-out."""
    with (
        listening(says(b"HTTP/1.1 "), runtime_dir / "e.sock") as endpoint,
        pytest.raises(EngineDied),
    ):
        client.chat(endpoint, ASK)
    with (
        listening(says(then_wait=True), runtime_dir / "f.sock") as endpoint,
        pytest.raises(EngineTimeout, match=r"over 0\.1 s"),
    ):
        client.chat(endpoint, ASK, timeouts=Timeouts(answer_s=0.1))


def test_a_handlers_error_keeps_its_cause_and_its_context() -> None:
    """It is raised out of the handling of another error, and says nothing of that one."""
    own = TimeoutError("own")
    own.__cause__ = cause = KeyError("cause")

    def handler() -> NoReturn:
        raise own

    def mapped() -> None:
        try:
            try:
                handler()
            except TimeoutError as exc:
                raise RuntimeError("made of it") from exc
        except RuntimeError as exc:
            raise_callers(exc)

    with pytest.raises(TimeoutError) as caught:
        mapped()
    assert caught.value is own
    assert own.__cause__ is cause
    assert own.__context__ is None
