"""A keeper that is stopped or hangs: every wait on it has a bound, and one that works has all the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.flows import run_blocking
from backends.machine.files.file_locks import KEEPER_LOCK, lock_keeper
from backends.scripted import Script
from shim import Cancelled, EngineDied, EngineTimeout, KeeperUnavailable, QueueFull, Shim
from shim.wire.event_loops import LoopChannel
from shim.wire.json_lines import encode
from shim.wire.keeper_connection import KeeperConnection
from shim.wire.launch import try_connect
from shim.wire.silence import LOOK_S, SILENCE_S, keeper_silent
from shim.wire.threads import SocketChannel
from tests.shim.fake_keeper import HANG_UP, FakeKeeper, Message, engine_on_a_thread, grant
from traces import RunTrace

Scenario = Callable[[KeeperConnection], Coroutine[Any, Any, None]]
CONFIG = {"models": {"m": {"path": "/nowhere.gguf"}}}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can wait for."""
    for name in ("SILENCE_S", "LOOK_S", "CONNECT_S"):
        monkeypatch.setattr(f"shim.wire.silence.{name}", 0.1)
    monkeypatch.setattr("shim.wire.launch.CONNECT_S", 0.1)


def on_a_thread(sock: socket.socket, scenario: Scenario) -> None:
    """Run a scenario over a blocking socket."""
    run_blocking(scenario(KeeperConnection(SocketChannel(sock))))


def on_a_loop(sock: socket.socket, scenario: Scenario) -> None:
    """Run a scenario on an event loop."""

    async def main() -> None:
        await scenario(KeeperConnection(LoopChannel(sock)))

    asyncio.run(main())


either_way = pytest.mark.parametrize("run", [on_a_thread, on_a_loop])
Run = Callable[[socket.socket, Scenario], None]


def silent(_: Message) -> Iterator[Message]:
    """A keeper that says nothing."""
    return iter(())


class ScriptedChannel:
    """Lines that are already here, and the limits under which they were read."""

    is_gone = False

    def __init__(self, *messages: Message) -> None:
        self.lines = [encode(message) for message in messages]
        self.limits: list[float] = []
        self.sent: list[bytes] = []

    async def send(self, line: bytes, limit_s: float) -> None:
        self.sent.append(line)

    def send_now(self, line: bytes) -> int:
        self.sent.append(line)
        return len(line)

    def silent(self, waited_s: float) -> KeeperUnavailable:
        return keeper_silent(None, None, waited_s)

    async def read(self, limit_s: float) -> bytes:
        self.limits.append(limit_s)
        return self.lines.pop(0)

    def arrived(self) -> list[bytes]:
        lines, self.lines = self.lines, []
        return lines

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@either_way
@pytest.mark.usefixtures("hasty")
def test_a_keeper_that_says_nothing_is_given_up_by_name(runtime_dir: Path, run: Run) -> None:
    """The error names its process and its folder; the connection serves no other call."""

    async def scenario(line: KeeperConnection) -> None:
        with pytest.raises(KeeperUnavailable, match="does not respond") as caught:
            await line.ask("lease", model="m")
        assert caught.value.facts["pid"] == os.getpid()
        assert caught.value.facts["runtime"] == str(runtime_dir)
        assert f"kill -9 {os.getpid()}" in caught.value.hint
        assert not line.is_usable
        assert not line.is_gone

    with lock_keeper(runtime_dir), FakeKeeper(runtime_dir, CONFIG, silent):
        sock = try_connect(runtime_dir)
        assert sock is not None
        with sock:
            run(sock, scenario)


@pytest.mark.parametrize("lock", ["missing", "free", "another's"])
@pytest.mark.usefixtures("hasty")
def test_a_stranger_at_the_socket_is_not_named_as_one_to_kill(runtime_dir: Path, lock: str) -> None:
    """It listens where a keeper would, and holds no keeper's lock; the hint calls it no keeper."""

    async def scenario(line: KeeperConnection) -> None:
        with pytest.raises(KeeperUnavailable, match="listens as a keeper") as caught:
            await line.ask("lease", model="m")
        assert caught.value.facts["pid"] == os.getpid()
        assert "kill" not in caught.value.hint

    with contextlib.ExitStack() as held:
        if lock != "missing":
            held.enter_context(lock_keeper(runtime_dir)).release()
        if lock == "another's":
            held.enter_context(_held_elsewhere(runtime_dir / KEEPER_LOCK))
        held.enter_context(FakeKeeper(runtime_dir, CONFIG, silent))
        sock = try_connect(runtime_dir)
        assert sock is not None
        with sock:
            on_a_thread(sock, scenario)


@contextlib.contextmanager
def _held_elsewhere(path: Path) -> Iterator[None]:
    """Let another process hold a lock file."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.communicate()


@either_way
@pytest.mark.usefixtures("hasty")
def test_a_keeper_that_does_not_read_is_given_up(run: Run) -> None:
    """What is long fills the socket and is not waited for without end."""

    async def scenario(line: KeeperConnection) -> None:
        with pytest.raises(KeeperUnavailable, match="does not respond"):
            await line.ask("plan", models=["m" * 1000] * 5000)
        with pytest.raises(KeeperUnavailable, match="does not respond"):
            line.tell("end", lease="r1")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(ours, scenario)


def test_each_sign_of_life_gives_the_keeper_the_whole_time_again() -> None:
    """A load takes as long as it takes, while the keeper says that it is alive."""
    channel = ScriptedChannel(*[{"notice": "alive"}] * 3, {"id": 1, "ok": {"slot": 0}})
    assert run_blocking(KeeperConnection(channel).ask("lease")) == {"slot": 0}
    assert channel.limits == [SILENCE_S] * 4


def test_an_answer_that_comes_while_the_shim_closes_is_not_used() -> None:
    """A lease that was granted at that moment would send a request after the close."""

    class Closing(ScriptedChannel):
        async def read(self, limit_s: float) -> bytes:
            if self.limits:
                raise KeeperUnavailable("The socket is closed.")
            line.interrupt()
            return await super().read(limit_s)

    line = KeeperConnection(Closing({"id": 1, "ok": {"lease": "r1"}}))
    with pytest.raises(Cancelled, match="closed"):
        run_blocking(line.ask("lease"))
    assert not line.is_usable


def test_what_only_looks_is_given_up_sooner() -> None:
    """`keepwarm ps` says within 5 s that the keeper does not respond."""
    channel = ScriptedChannel({"id": 1, "ok": {}}, {"id": 2, "ok": {}})
    line = KeeperConnection(channel)
    run_blocking(line.ask("hello"))
    run_blocking(line.ask("status"))
    assert channel.limits == [LOOK_S, LOOK_S] == [5.0, 5.0]


def test_what_explains_a_failure_is_bounded_whatever_the_keeper_says() -> None:
    """The error that is to be explained is at hand."""
    channel = ScriptedChannel({"notice": "alive"}, {"id": 1, "ok": {}})
    run_blocking(KeeperConnection(channel).ask("diagnose", within_s=3.0))
    assert channel.limits[0] <= 3.0
    assert channel.limits[1] < channel.limits[0]


def test_a_ping_is_answered_wherever_notices_are_read() -> None:
    """Between two pieces, and while an answer is waited for; what else is said is not lost."""
    ping, taken = {"notice": "ping", "lease": "r1"}, {"notice": "yield", "lease": "r1"}
    channel = ScriptedChannel(ping, taken, {"id": 1, "ok": {}}, ping)
    line = KeeperConnection(channel)
    run_blocking(line.ask("diagnose"))
    assert line.notices() == [taken]
    pong = encode({"op": "pong", "lease": "r1"})
    assert channel.sent[1:] == [pong, pong]


@pytest.mark.usefixtures("hasty")
def test_connecting_to_a_stopped_keeper_is_bounded(runtime_dir: Path) -> None:
    """Its queue of connections is full, and the keeper accepts none."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(runtime_dir / "keeper.sock"))
        listening.listen(0)
        with lock_keeper(runtime_dir), contextlib.ExitStack() as waiting:

            def fill() -> None:
                while (sock := try_connect(runtime_dir)) is not None:
                    waiting.enter_context(sock)

            with pytest.raises(KeeperUnavailable, match="does not respond") as caught:
                fill()
    assert caught.value.facts["pid"] == os.getpid()


@pytest.mark.parametrize("greets", [True, False])
@pytest.mark.usefixtures("hasty")
def test_calls_and_the_end_of_a_shim_never_hang_on_a_silent_keeper(
    runtime_dir: Path, *, greets: bool
) -> None:
    """Whether it stops before or after it was greeted; `close` asks it nothing."""
    with FakeKeeper(runtime_dir, CONFIG, silent, greets=greets) as keeper:
        shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
        calls: list[Callable[[], object]] = [
            lambda: shim.chat("m", "Hi."),
            lambda: asyncio.run(shim.achat("m", "Hi.")),
            shim.status,
            lambda: shim.declare(["m"]),
            lambda: shim.pin("m"),
            lambda: shim.unload("m"),
        ]
        for call in calls:
            with pytest.raises(KeeperUnavailable, match="does not respond"):
                call()
        before = len(keeper.heard)
        shim.close()
        assert len(keeper.heard) == before


def test_a_keeper_that_ends_before_it_answers_is_asked_again(runtime_dir: Path) -> None:
    """Nothing was delivered: the next keeper gets the request, with what is left of its deadline."""
    asked = 0

    def says(message: Message) -> Iterator[Message]:
        nonlocal asked
        asked += 1
        yield HANG_UP if asked == 1 else {"ok": {"cold": True, "again": True}}

    with FakeKeeper(runtime_dir, CONFIG, says) as keeper:
        shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
        assert shim.load("m", deadline_s=60)["again"] is True
        shim.close()
    first, second = (m["deadline_s"] for m in keeper.heard if m["op"] == "lease")
    assert second < first == 60


def test_a_keeper_that_ends_again_and_again_is_an_error(runtime_dir: Path) -> None:
    """A request is asked twice and no more."""

    def says(_: Message) -> Iterator[Message]:
        yield HANG_UP

    with FakeKeeper(runtime_dir, CONFIG, says) as keeper:
        shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
        with pytest.raises(KeeperUnavailable, match="ended"):
            shim.load("m")
        shim.close()
    assert [m["op"] for m in keeper.heard] == ["hello", "lease"] * 2


def test_a_keeper_that_refuses_the_connection_says_why(runtime_dir: Path) -> None:
    """It has as many clients as it may have."""
    error = QueueFull("16 clients are connected.").to_wire()

    def says(_: Message) -> Iterator[Message]:
        yield {"notice": "refused", "error": error}
        yield HANG_UP

    with FakeKeeper(runtime_dir, CONFIG, says):
        shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
        with pytest.raises(QueueFull, match="16 clients"):
            shim.load("m")
        shim.close()


def leased(engine: Any, *notices: Message, death: Message | None = None) -> Any:
    """What a keeper says that grants a lease and has something to add, which is there with the grant."""

    def says(message: Message) -> Iterator[Message | list[Message]]:
        if message["op"] == "lease":
            yield [grant(engine), *notices]
        elif message["op"] == "diagnose":
            yield {"ok": {"death": death}}

    return says


def test_a_stream_answers_pings_between_its_pieces(runtime_dir: Path) -> None:
    """So its lease is not taken for that of a client that is stopped."""
    with engine_on_a_thread(runtime_dir) as engine:
        says = leased(engine, {"notice": "ping", "lease": "r1"})
        with FakeKeeper(runtime_dir, CONFIG, says) as keeper:
            shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
            with shim.stream("m", "Hi.") as stream:
                next(stream)
                next(stream)
                assert keeper.until_heard("pong")["lease"] == "r1"
            shim.close()


@pytest.mark.parametrize("options", [{}, {"grammar": 'root ::= "x"'}])
def test_a_lease_that_is_taken_back_ends_the_stream_with_the_reason(
    runtime_dir: Path, options: dict[str, Any]
) -> None:
    """Also of an answer that cannot be interrupted; another's lease is none of its business."""
    error = EngineTimeout("The client did not answer for 30 s.").to_wire()
    with engine_on_a_thread(runtime_dir) as engine:
        notices = [{"notice": "revoked", "lease": lease, "error": error} for lease in ("r0", "r1")]
        with FakeKeeper(runtime_dir, CONFIG, leased(engine, notices[0])):
            shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
            assert "".join(map(str, shim.stream("m", "Hi.", **options))) == "one two three"
            shim.close()
        (runtime_dir / "keeper.sock").unlink()
        with FakeKeeper(runtime_dir, CONFIG, leased(engine, *notices)) as keeper:
            shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
            with shim.stream("m", "Hi.", **options) as stream:
                next(stream)
                with pytest.raises(EngineTimeout, match="did not answer"):
                    next(stream)
                assert next(stream, None) is None
            keeper.until_heard("end")
            shim.close()


@pytest.mark.parametrize("streamed", [True, False])
def test_a_broken_answer_is_explained_by_the_keeper(runtime_dir: Path, *, streamed: bool) -> None:
    """It ended the engine, or took the lease back; without its word, the connection broke."""
    timeout = EngineTimeout("No token for 60 s.").to_wire()
    revoked = {"notice": "revoked", "lease": "r1", "error": timeout}
    script = Script(die_after=1, tokens=["a "] * 9)
    for notices, death, expected in (
        ((), timeout, EngineTimeout),
        ((revoked,), None, EngineTimeout),
        ((), None, EngineDied),
    ):
        with engine_on_a_thread(runtime_dir, script) as engine:
            answer = leased(engine, *notices, death=death)
            with (
                FakeKeeper(runtime_dir, CONFIG, answer),
                Shim(CONFIG, inline=False, runtime=runtime_dir) as shim,
                pytest.raises(expected),
            ):
                list(shim.stream("m", "Hi.")) if streamed else shim.chat("m", "Hi.")
            (runtime_dir / "keeper.sock").unlink()


@pytest.mark.usefixtures("hasty")
def test_a_silent_keeper_does_not_hold_up_a_broken_answer(runtime_dir: Path) -> None:
    """The caller hears that the keeper does not respond, within the bound."""

    def says(message: Message) -> Iterator[Message]:
        if message["op"] == "lease":
            yield grant(engine)

    with (
        engine_on_a_thread(runtime_dir, Script(die_after=1)) as engine,
        FakeKeeper(runtime_dir, CONFIG, says),
        Shim(CONFIG, inline=False, runtime=runtime_dir) as shim,
        pytest.raises(KeeperUnavailable, match="does not respond"),
    ):
        shim.chat("m", "Hi.")


def test_closing_ends_a_call_that_waits_for_its_lease(runtime_dir: Path) -> None:
    """In a thread and on a loop; with a typed error, and the connection is gone."""
    with FakeKeeper(runtime_dir, CONFIG, silent) as keeper, ThreadPoolExecutor(2) as pool:
        for call in (lambda s: s.chat("m", "Hi."), lambda s: asyncio.run(s.achat("m", "Hi."))):
            keeper.heard.clear()
            shim = Shim(CONFIG, inline=False, runtime=runtime_dir)
            waits = pool.submit(call, shim)
            keeper.until_heard("lease")
            shim.close()
            with pytest.raises(Cancelled, match="closed"):
                waits.result(60)


@pytest.mark.parametrize("greets", [False, True])
@pytest.mark.usefixtures("hasty")
def test_a_traced_call_of_a_silent_keeper_waits_for_it_once(
    runtime_dir: Path, tmp_path: Path, *, greets: bool
) -> None:
    """What the keeper did during the run only explains; a keeper that was silent is not asked that."""
    with (
        FakeKeeper(runtime_dir, CONFIG, silent, greets=greets) as keeper,
        Shim(CONFIG, inline=False, runtime=runtime_dir) as shim,
    ):
        with RunTrace(directory=tmp_path), pytest.raises(KeeperUnavailable):
            shim.chat("m", "Hello.")
        assert [said["op"] for said in keeper.heard] == ["hello", "lease"][: 1 + greets]
        assert keeper.connections == 1
