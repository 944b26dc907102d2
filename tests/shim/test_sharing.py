"""One Shim for many: threads, event loops one after the other and at once, forked children, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shim as public
from backends.scripted import Script
from shim import Cancelled, InvalidRequest, KeepwarmError, Shim
from shim.calls.lifetime.inline_keeper import InlineStart
from shim.keeper.process import inline
from tests.processes import wait_until
from tests.shim.conftest import Stage

LONG = [f"word{number} " for number in range(10_000)]


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What threads that begin together return, or the error that they raise."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait(60)
        try:
            return work(number)
        except KeepwarmError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def in_a_child(work: Callable[[], object]) -> None:
    """Fork, do something in the child, and collect its garbage there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            gc.collect()
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


class Closing:
    """A keeper that does nothing but end."""

    runtime = Path("/nowhere")
    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Started:
    """Counts the inline keepers that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.real = inline.InlineKeeper
        monkeypatch.setattr(inline, "InlineKeeper", self)

    def __call__(self, *args: Any, **options: Any) -> inline.InlineKeeper:
        """Make one."""
        self.count += 1
        return self.real(*args, **options)


def test_the_first_calls_of_many_threads_start_one_keeper(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of event loops, too."""
    started = Started(monkeypatch)
    shim = Shim(stage.shim.config, factory=stage.make)

    def call(number: int) -> str:
        if number % 2:
            return asyncio.run(shim.achat("a", "Hi.")).content
        return shim.chat("a", "Hi.").content

    assert at_once(6, call) == ["one two three"] * 6
    assert started.count == 1
    shim.close()


def test_a_start_that_fails_raises_in_all_that_waited_and_is_tried_again_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six threads do not fail one after the other."""
    made: list[str] = []
    waiting = threading.Semaphore(0)

    class Attempt(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waiting.release()
            return super().result(timeout)

    def make() -> Any:
        made.append("keeper")
        if len(made) == 1:
            for _ in range(5):
                waiting.acquire(timeout=20)
            raise InvalidRequest("No keeper today.")
        return Closing()

    monkeypatch.setattr("shim.calls.lifetime.inline_keeper.Future", Attempt)
    start = InlineStart(make)
    outcomes = at_once(6, lambda _: start.start())
    assert [str(outcome) for outcome in outcomes] == ["No keeper today."] * 6
    assert made == ["keeper"]
    assert start.start() is start.running
    assert made == ["keeper"] * 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_a_start_that_is_interrupted_is_begun_again_by_one_who_waits(
    kind: type[BaseException],
) -> None:
    """Ctrl-C, or what a signal's handler raises, ends one thread's call, and not those of the others."""
    made: list[str] = []
    both_wait = threading.Barrier(2)

    def make() -> Any:
        made.append("keeper")
        if len(made) == 1:
            both_wait.wait(60)
            raise kind
        return Closing()

    start = InlineStart(make)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(start.start)
        assert wait_until(lambda: bool(made))
        second = pool.submit(start.start)
        both_wait.wait(60)
        with pytest.raises(kind):
            first.result(60)
        assert second.result(60) is start.running


def test_a_start_that_ends_after_the_close_leaves_no_keeper() -> None:
    """What is started is ended, and the call that waited for it gets that error."""
    starting, go = threading.Event(), threading.Event()
    keeper = Closing()

    def make() -> Any:
        starting.set()
        go.wait(60)
        return keeper

    start = InlineStart(make)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(start.start)
        starting.wait(60)
        start.close()
        go.set()
        with pytest.raises(Cancelled, match="closed"):
            call.result(60)
    assert keeper.closed
    assert start.running is None


def test_threads_that_declare_do_not_hear_each_others_answers(stage: Stage) -> None:
    """Each exchange has a connection of its own; the order that was declared last stands."""

    def declare(number: int) -> None:
        for _ in range(20):
            stage.shim.declare(["ab"[number % 2]] * (number + 1))

    assert at_once(8, declare) == [None] * 8
    (left,) = stage.shim.status()["plans"].values()
    assert 1 <= len(left) <= 8
    stage.shim.declare([])
    assert stage.shim.status()["plans"] == {}


def test_tasks_and_loops_share_a_plan(stage: Stage) -> None:
    """`adeclare` of many tasks on two loops at once."""
    plan = stage.shim.plan(["a", "b"])

    async def declare() -> None:
        await asyncio.gather(*(plan.adeclare(["a"] * (n + 1)) for n in range(8)))

    with plan:
        assert at_once(2, lambda _: asyncio.run(declare())) == [None, None]
        assert len(stage.shim.status()["plans"]) == 1
    assert stage.shim.status()["plans"] == {}


@pytest.mark.parametrize("rounds", [50, pytest.param(500, marks=pytest.mark.full)])
def test_runs_of_event_loops_leave_nothing_behind(stage: Stage, rounds: int) -> None:
    """`asyncio.run` again and again: the descriptors are those of before, and no loop is alive."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def call() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        assert (await stage.shim.achat("a", "Hi.")).content == "one two three"

    asyncio.run(call())
    gc.collect()
    before = descriptors()
    for _ in range(rounds):
        asyncio.run(call())
    gc.collect()
    # The scripted engine runs in this process, and closes its ends a moment later.
    assert wait_until(lambda: descriptors() <= before)
    assert [loop for loop in loops if loop() is not None] == []
    assert stage.lease_count() == 0


def test_a_connection_serves_one_loop_after_the_other(stage: Stage) -> None:
    """An idle one belongs to no loop."""
    for _ in range(3):
        asyncio.run(stage.shim.achat("a", "Hi."))
    assert len(stage.shim._session.async_connections.idle) == 1


def test_loops_of_many_threads_at_once(stage: Stage) -> None:
    """Each gets its own answers, with as many tasks as there are."""

    async def calls(number: int) -> list[str]:
        replies = await asyncio.gather(
            *(stage.shim.achat("ab"[number % 2], "Hi.") for _ in range(5))
        )
        return [reply.model for reply in replies]

    answers = at_once(4, lambda number: asyncio.run(calls(number)))
    assert answers == [["ab"[number % 2]] * 5 for number in range(4)]
    assert wait_until(lambda: stage.lease_count() == 0)


def test_many_calls_at_once_do_not_leave_as_many_connections(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are kept for the next calls, the rest are closed."""
    monkeypatch.setattr("shim.wire.keeper_connection.IDLE_KEPT", 3)
    assert at_once(8, lambda _: stage.shim.chat("a", "Hi.").content) == ["one two three"] * 8
    assert len(stage.shim._session.connections.flows.idle) <= 3


def test_an_unclosed_asynchronous_stream_gives_its_lease_back(stage: Stage) -> None:
    """And its generation stops, while the loop goes on."""
    stage.scripts["a"] = Script(tokens=LONG)

    async def forget() -> None:
        stream = await stage.shim.astream("a", "Hi.")
        await anext(stream)
        del stream
        gc.collect()
        (engine,) = stage.engines
        assert await asyncio.to_thread(wait_until, lambda: engine.active_requests == 0, 10)
        assert await asyncio.to_thread(wait_until, lambda: stage.lease_count() == 0, 10)

    asyncio.run(forget())


def test_a_childs_garbage_collection_ends_nothing_of_its_parents(stage: Stage) -> None:
    """The child lets go of a stream, a plan and a pin, closes the Shim, and the parent goes on."""
    stage.scripts["a"] = Script(tokens=LONG[:50])
    held: list[Any] = []

    def let_go() -> None:
        stream, plan = held
        with contextlib.suppress(InvalidRequest):
            next(stream)
        stream.close()
        plan.close()
        held.clear()
        stage.shim.close()

    stage.shim.pin("a")
    with stage.shim.plan(["a", "b"]) as plan, stage.shim.stream("a", "Hi.") as stream:
        first = str(next(stream))
        held[:] = [stream, plan]
        for work in (held.clear, let_go, lambda: stage.shim.declare([])):
            held[:] = [stream, plan]
            in_a_child(work)
        assert stage.lease_count() == 1
        assert stage.shim.status()["declared"][0]["plan"] == plan.name
        assert stage.shim.status()["engines"][0]["pinned"]
        assert first + "".join(map(str, stream)) == "".join(LONG[:50])
    assert stage.lease_count() == 0
    assert stage.shim.chat("a", "Hi.").content


def test_a_child_has_plans_and_streams_of_its_own(stage: Stage) -> None:
    """What it declares ends with it; what the parent declared stays."""
    with stage.shim.plan(["b", "b", "b"]) as plan:

        def work() -> None:
            plan.declare(["a"])
            assert len(stage.shim.status()["plans"]) == 2
            with stage.shim.stream("a", "Hi.") as stream:
                assert "".join(map(str, stream)) == "one two three"

        in_a_child(work)
        assert wait_until(lambda: len(stage.shim.status()["plans"]) == 1)
        assert stage.shim.status()["declared"][0]["left"] == 3


def test_a_child_holds_no_connection_of_its_parents(stage: Stage) -> None:
    """While a child runs, the end of the parent's stream still ends its lease and its generation."""
    stage.scripts["a"] = Script(tokens=LONG)
    stream = stage.shim.stream("a", "Hi.")
    next(stream)
    release_fd, go_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_fd)
        os.read(release_fd, 1)
        os._exit(0)
    os.close(release_fd)
    stream.close()
    assert stage.lease_count() == 0
    assert wait_until(lambda: stage.engines[0].active_requests == 0)
    os.close(go_fd)
    os.waitpid(pid, 0)


def test_closing_ends_what_runs_in_threads_and_loops(stage: Stage) -> None:
    """Answers that are read, and a call that waits for its slot: typed errors; no lease is left."""
    stage.scripts["a"] = Script(
        tokens=LONG, token_gate=asyncio.Event()
    )  # it says one word and waits
    stage.shim.load("a")
    shim = Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime)

    async def stream() -> None:
        async for _ in await shim.astream("a", "Hi."):
            pass

    with ThreadPoolExecutor(4) as pool:
        works: list[Future[Any]] = [
            pool.submit(shim.chat, "a", "Hi."),
            pool.submit(lambda: asyncio.run(stream())),
        ]
        assert wait_until(lambda: len(stage.engines[0].requests) == 2)
        works.append(pool.submit(shim.chat, "a", "Hi."))
        works.append(pool.submit(lambda: asyncio.run(shim.achat("a", "Hi."))))
        assert wait_until(lambda: len(stage.shim.status()["queue"]) == 2)
        shim.close()
        for work in works:
            with pytest.raises(Cancelled, match="closed"):
                work.result(60)
    assert wait_until(lambda: stage.lease_count() == 0)
    assert wait_until(lambda: stage.engines[0].active_requests == 0)


def test_a_closed_shim_refuses_calls_and_can_be_closed_again(stage: Stage) -> None:
    """With a typed error, whatever is called; nothing is started for it."""
    shim = Shim(stage.shim.config, factory=stage.make)
    shim.chat("a", "Hi.")
    plan = shim.plan(["a"])
    shim.close()
    shim.close()
    calls: list[Callable[[], object]] = [
        lambda: shim.chat("a", "Hi."),
        lambda: shim.chat("remote", "Hi."),
        lambda: shim.stream("a", "Hi."),
        lambda: shim.embed("a", "Hi."),
        lambda: asyncio.run(shim.achat("a", "Hi.")),
        lambda: shim.load("a"),
        lambda: shim.pin("a"),
        lambda: shim.unpin("a"),
        lambda: shim.release("a"),
        lambda: shim.declare(["a"]),
        lambda: plan.declare(["a"]),
        shim.status,
        shim.reload,
        shim.__enter__,
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="closed"):
            call()
    plan.close()


def test_many_may_close_at_once_and_while_it_starts(stage: Stage) -> None:
    """No keeper is left, in whichever order they end."""
    before = threading.active_count()
    shim = Shim(stage.shim.config, factory=stage.make)

    def work(number: int) -> None:
        if number % 2:
            shim.close()
        else:
            shim.chat("a", "Hi.")

    outcomes = at_once(6, work)
    assert {type(outcome) for outcome in outcomes if isinstance(outcome, Exception)} <= {
        InvalidRequest,
        Cancelled,
    }
    assert shim._session._keeper.running is None
    assert wait_until(lambda: threading.active_count() <= before)


def test_asynchronous_ends(stage: Stage) -> None:
    """`async with` starts the keeper and ends it with both sides' connections."""
    before = descriptors()

    async def main() -> Shim:
        async with Shim(stage.shim.config, factory=stage.make) as shim:
            assert (await shim.achat("a", "Hi.")).content == "one two three"
            assert shim._session._keeper.running is not None
        await shim.aclose()
        with pytest.raises(InvalidRequest):
            await shim.achat("a", "Hi.")
        return shim

    shim = asyncio.run(main())
    assert shim._session._keeper.running is None
    gc.collect()
    assert descriptors() <= before


def test_a_pin_ends_with_its_shim_unless_it_is_to_persist(stage: Stage) -> None:
    """It has a connection of its own, which no later call takes."""

    def pinned() -> list[str]:
        return [row["models"][0] for row in stage.shim.status()["engines"] if row["pinned"]]

    with Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime) as other:
        other.pin("a")
        other.pin("a")
        other.chat("a", "Hi.")
        assert pinned() == ["a"]
        other.unpin("a")
        assert pinned() == []
        other.pin("a")
    assert wait_until(lambda: pinned() == [])
    with Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime) as other:
        other.pin("a", persist=True)
    assert pinned() == ["a"]
    stage.shim.unpin("a")
    assert pinned() == []


def test_the_default_shim_is_made_once_by_many_threads(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `use` replaces it for all of them."""
    made: list[Shim] = []

    def make() -> Shim:
        made.append(Shim(stage.shim.config, inline=False, runtime=stage.shim.runtime))
        return made[-1]

    monkeypatch.setattr("shim.defaults.Shim", make)
    monkeypatch.setattr("shim.defaults._DEFAULT._shim", None)
    found = at_once(6, lambda _: public.default_shim())
    assert found == made * 6
    public.use(stage.shim)
    assert at_once(2, lambda _: public.default_shim()) == [stage.shim] * 2
    made[0].close()


def test_a_cancelled_call_does_not_leave_the_connection_that_was_on_its_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed when it arrives."""
    asked, go = threading.Event(), threading.Event()
    opened: list[Any] = []
    lines = stage.shim._session.async_connections
    connect = lines._new_socket

    def slow() -> Any:
        asked.set()
        go.wait(60)
        opened.append(connect())
        return opened[-1]

    monkeypatch.setattr(lines, "_new_socket", slow)

    async def cancelled() -> None:
        task = asyncio.create_task(stage.shim.achat("a", "Hi."))
        assert await asyncio.to_thread(asked.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(cancelled())
    # No loop waits for the thread that connects.
    assert wait_until(lambda: [sock.fileno() for sock in opened] == [-1])


def test_an_inline_keeper_whose_start_is_interrupted_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the models are measured leaves no thread and no folder."""
    made: list[inline.InlineKeeper] = []
    run = inline.InlineKeeper._run

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    def _run(self: inline.InlineKeeper) -> None:
        made.append(self)
        run(self)

    monkeypatch.setattr(inline.InlineKeeper, "_run", _run)
    with monkeypatch.context() as patch:
        used = SimpleNamespace(Event=Interrupted, Thread=threading.Thread)
        patch.setattr(inline, "threading", used)
        with pytest.raises(KeyboardInterrupt):
            inline.InlineKeeper(stage.shim.config, factory=stage.make)
    assert not made[0]._thread.is_alive()
    assert not made[0].runtime.exists()
