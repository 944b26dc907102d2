"""What a signal's handler raises while a call waits comes out as it is, and no lease is left."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from backends.scripted import Script
from shim import Shim
from shim.wire.launch import connect_or_start
from tests.processes import wait_until
from tests.shim.conftest import Stage
from tests.shim.fake_keeper import FakeKeeper, Message

_STEPS = ("connect", "setsockopt", "send", "sendall", "recv")
"""Where a thread's call waits for the keeper and for engines, or could."""


class MyError(Exception):
    """An error of the program's own."""


class MyStop(BaseException):
    """Another one, which no `except Exception` catches."""


KINDS = [TimeoutError, OSError, ConnectionResetError, BlockingIOError, ValueError, MyError, MyStop]
each_kind = pytest.mark.parametrize("kind", KINDS)


class Interrupted:
    """Raises an error at the n-th step of the main thread on a socket, before or after it is done."""

    def __init__(self, error: BaseException, at: int, *, after: bool) -> None:
        self._error, self._left, self._after = error, at, after

    def __call__(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A step that is interrupted when its turn comes."""
        turn, after = self._turn, self._after

        def run(*arguments: Any) -> Any:
            if not after:
                turn()
            result = step(*arguments)
            if after:
                turn()
            return result

        # What a system call raises has come through frames of the library alone, as here.
        named = {**globals(), "__name__": "socket"}
        return FunctionType(run.__code__, named, "run", None, run.__closure__)

    def _turn(self) -> None:
        """What a handler does that runs here."""
        if threading.current_thread() is threading.main_thread():
            self._left -= 1
            if self._left == 0:
                raise self._error


def _stream(shim: Shim) -> None:
    with shim.stream("a", "Hello.") as stream:
        assert "".join(map(str, stream)) == "one two three"


def _plan(shim: Shim) -> None:
    with shim.plan(["a", "a"]):
        pass


def _pin(shim: Shim) -> None:
    shim.pin("a")
    shim.unpin("a")


OPERATIONS: dict[str, Callable[[Shim], object]] = {
    "chat": lambda shim: shim.chat("a", "Hello."),
    "stream": _stream,
    "plan": _plan,
    "pin": _pin,
    "status": lambda shim: shim.status(),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", [TimeoutError, ConnectionResetError, BlockingIOError, MyError])
def test_an_error_at_any_step_on_a_socket_is_the_handlers_own(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    operation: str,
    *,
    after: bool,
) -> None:
    """On new connections and open ones; no lease, request, plan or pin is left, the next call is served.

    The errors are kept, and with them every frame that they came through.
    """
    run, kept = OPERATIONS[operation], list[BaseException]()
    stage.shim.chat("a", "Hello.")
    done = False
    while not done:
        error, cause = kind("the handler's own"), KeyError("its cause")
        error.__cause__ = cause
        interrupted = Interrupted(error, len(kept) + 1, after=after)
        with Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime) as shim:
            with monkeypatch.context() as patch:
                for name in _STEPS:
                    patch.setattr(socket.socket, name, interrupted(getattr(socket.socket, name)))
                try:
                    run(shim)
                    run(shim)
                    done = True
                except BaseException as raised:
                    assert raised is error
                    assert raised.__cause__ is cause
                    kept.append(raised)
            assert wait_until(lambda: _left(stage.shim) == []), _left(stage.shim)
            assert shim.chat("a", "Hello.").content == "one two three"
    assert len(kept) >= 4


def _left(watch: Shim) -> list[Any]:
    """Whatever a call could leave at the keeper."""
    told = watch.status()
    leases = [row["leases"] for row in told["engines"] if row["leases"]]
    pins = [row["pinned_by"] for row in told["engines"] if row["pinned_by"]]
    return [*leases, *pins, *told["queue"], *told["plans"]]


@contextlib.contextmanager
def handler_raises(error: BaseException) -> Iterator[Callable[[], None]]:
    """A signal's handler that raises an error in the main thread; gives what sends the signal."""

    def handler(*_: object) -> None:
        raise error

    main, before = threading.main_thread().ident or 0, signal.signal(signal.SIGUSR1, handler)
    try:
        yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@each_kind
@pytest.mark.parametrize("op", ["lease", "plan", "status", "hint"])
def test_an_error_while_the_keeper_is_waited_for_withdraws_what_was_asked(
    runtime_dir: Path, tiny_models: dict[str, Path], kind: type[BaseException], op: str
) -> None:
    """A real signal; the keeper finds the connection closed, and the next call has a new one."""
    config = {
        "budget": {"device": "host"},
        "models": {"a": {"path": str(tiny_models["classifier"])}},
    }
    error = kind("the handler's own")
    withdrawn = threading.Event()

    def says(message: Message) -> Iterator[Message]:
        if len([m for m in keeper.heard if m["op"] == op]) == 1:
            ring()
            return
        yield {"ok": {"engines": [], "gone": False}}

    asks: dict[str, Callable[[Shim], object]] = {
        "lease": lambda shim: shim.load("a"),
        "plan": lambda shim: shim.declare(["a"]),
        "status": lambda shim: shim.status(),
        "hint": lambda shim: shim.release("a"),
    }
    with (
        handler_raises(error) as ring,
        FakeKeeper(runtime_dir, config, says) as keeper,
        Shim(config, inline=False, runtime=runtime_dir) as shim,
    ):
        with pytest.raises(kind) as caught:
            asks[op](shim)
        assert caught.value is error
        assert list(shim._session.connections.flows.idle) == []
        assert asks[op](shim) is not withdrawn
        assert keeper.connections == 2


@each_kind
def test_an_error_while_a_request_is_queued_leaves_no_request(
    stage: Stage, kind: type[BaseException]
) -> None:
    """A real signal, behind the lease of another request."""
    stage.scripts["b"] = Script(tokens=["word "] * 10_000)
    error = kind("the handler's own")
    watch = Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime)
    with stage.shim.stream("b", "Hello."), handler_raises(error) as ring:

        def ring_when_queued() -> None:
            assert wait_until(lambda: bool(watch.status()["queue"]))
            ring()

        ringing = threading.Thread(target=ring_when_queued)
        ringing.start()
        with pytest.raises(kind) as caught:
            stage.shim.chat("b", "Hello.")
        ringing.join()
    assert caught.value is error
    assert wait_until(lambda: _left(watch) == [])
    watch.close()


@each_kind
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_while_the_engine_answers_ends_the_answer(
    stage: Stage, kind: type[BaseException], *, streamed: bool
) -> None:
    """A real signal, while no byte comes: neither a time-out nor a dead engine is made of it."""
    stage.shim.chat("a", "Hello.")
    script = stage.engines[-1].script
    script.token_gate = asyncio.Event()
    error = kind("the handler's own")
    watch = Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime)

    def call() -> object:
        if not streamed:
            return stage.shim.chat("a", "Hello.")
        with stage.shim.stream("a", "Hello.") as stream:
            return list(stream)

    with handler_raises(error) as ring:

        def ring_when_leased() -> None:
            assert wait_until(lambda: len(stage.engines[-1].requests) == 2)
            ring()

        ringing = threading.Thread(target=ring_when_leased)
        ringing.start()
        with pytest.raises(kind) as caught:
            call()
        ringing.join()
    assert caught.value is error
    assert wait_until(lambda: _left(watch) == [])
    script.token_gate = None
    assert stage.shim.chat("a", "Hello.").content == "one two three"
    watch.close()


@each_kind
def test_an_error_while_a_keeper_is_looked_for_starts_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], tmp_path: Path
) -> None:
    """It does not read as a keeper that is not there."""
    error = kind("the handler's own")
    interrupted = Interrupted(error, 1, after=False)
    monkeypatch.setattr(socket.socket, "connect", interrupted(socket.socket.connect))
    monkeypatch.setattr("shim.wire.launch.start", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(kind) as caught:
        connect_or_start(tmp_path, stage.shim.config)
    assert caught.value is error


@pytest.mark.parametrize("queued", [False, True])
def test_a_task_that_is_given_up_ends_as_its_program_says(stage: Stage, *, queued: bool) -> None:
    """A cancellation keeps its words, and a time-out of asyncio is that one's; nothing is left."""
    stage.shim.chat("b", "Hello.")
    stage.engines[-1].script.token_gate = asyncio.Event()
    watch = Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime)

    asked = 2

    def arrived() -> bool:
        return bool(watch.status()["queue"]) if queued else len(stage.engines[-1].requests) == asked

    async def given_up(call: Callable[[], Any]) -> None:
        nonlocal asked
        task = asyncio.create_task(call())
        assert await asyncio.to_thread(wait_until, arrived, 20)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ("enough",)

        async def timed() -> None:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await call()

        asked += 1
        limits: list[asyncio.Timeout] = []
        task = asyncio.create_task(timed())
        assert await asyncio.to_thread(wait_until, arrived, 20)
        limits[0].reschedule(asyncio.get_running_loop().time())
        with pytest.raises(TimeoutError):
            await task

    async def main() -> None:
        if not queued:
            await given_up(lambda: stage.shim.achat("b", "Hello."))
            return
        async with await stage.shim.astream("b", "Hello.") as held:
            await anext(held)
            await given_up(lambda: stage.shim.achat("b", "Hello."))

    asyncio.run(main())
    assert wait_until(lambda: _left(watch) == [])
    watch.close()


def test_a_task_that_is_given_up_while_it_declares_leaves_no_plan(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that declares goes on, and what it declared is withdrawn."""
    begun, go = threading.Event(), threading.Event()
    plan = stage.shim.plan(["a", "b"])
    declare = plan.declare

    def slowly(models: Any) -> None:
        begun.set()
        assert go.wait(60)
        declare(models)

    monkeypatch.setattr(plan, "declare", slowly)

    async def main() -> None:
        async def enter() -> None:
            async with plan:
                pytest.fail("it was entered")

        task = asyncio.create_task(enter())
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(main())
    assert wait_until(lambda: stage.shim.status()["plans"] == {})
