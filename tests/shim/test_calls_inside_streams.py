"""Calls that a program makes while it reads a stream: refused where they would wait for themselves."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backends.scripted import Script
from shim import Config, InvalidRequest, ReplyStream, Shim
from shim.calls.streaming.read_streams import leases_here
from tests.shim.conftest import Stage

LONG = [f"{number} " for number in range(2000)]


@pytest.fixture
def shim(stage: Stage) -> Iterator[Shim]:
    """Two models of one slot each, of which one fits at a time."""
    stage.scripts.update(a=Script(tokens=LONG), b=Script(tokens=LONG))
    mapping = stage.shim.config.to_mapping()
    mapping["budget"]["limit"], mapping["models"]["a"]["slots"] = "40MB", 1
    with Shim(Config.from_mapping(mapping), factory=stage.make) as shim:
        yield shim


CALLS: list[Callable[[Shim, str], Any]] = [
    lambda shim, model: shim.chat(model, "Hi."),
    lambda shim, model: next(shim.stream(model, "Hi.")),
    lambda shim, model: shim.embed(model, ["x"]),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("model", ["a", "b"])
def test_a_call_that_would_wait_for_its_own_stream_is_refused_at_once(
    shim: Shim, call: Callable[[Shim, str], Any], model: str
) -> None:
    """For its only slot, or for its bytes; the stream goes on, and then the call is answered."""
    with shim.stream("a", "Hi.") as stream:
        next(stream)
        with pytest.raises(
            InvalidRequest, match=f"{model} is asked for inside a stream or client of a, "
        ):
            call(shim, model)
        next(stream)
    call(shim, model)


def test_a_load_whose_bytes_the_callers_own_stream_keeps_is_refused(shim: Shim) -> None:
    """`load` and `pin` would wait as long; what is resident is loaded already."""
    for piece in shim.stream("a", "Hi."):
        assert piece
        with pytest.raises(InvalidRequest, match="holds the bytes"):
            shim.load("b")
        with pytest.raises(InvalidRequest, match="holds the bytes"):
            shim.pin("b")
        assert shim.load("a")["engine"]
        break


def test_a_call_inside_a_generator_that_reads_a_stream_is_recognised(shim: Shim) -> None:
    """The loop over the generator is the caller, not the frame that asked for the piece."""

    def words() -> Iterator[str]:
        with shim.stream("a", "Hi.") as stream:
            yield from map(str, stream)

    for _ in words():
        with pytest.raises(InvalidRequest, match="wait for itself"):
            shim.chat("a", "Hi.")
        break
    gc.collect()


def test_a_call_inside_an_asynchronous_stream_is_recognised(shim: Shim) -> None:
    """In the same task, by either kind of call; another task only waits."""

    async def main() -> None:
        async with shim.astream("a", "Hi.") as stream:
            await anext(stream)
            with pytest.raises(InvalidRequest, match="wait for itself"):
                await shim.achat("a", "Hi.")
            with pytest.raises(InvalidRequest, match="wait for itself"):
                shim.chat("a", "Hi.")
            other = asyncio.create_task(shim.achat("a", "Hi."))
            await anext(stream)
        assert (await other).content == "".join(LONG)

    asyncio.run(main())


def test_a_stream_that_another_thread_reads_is_waited_for(shim: Shim) -> None:
    """It ends without this thread, although this thread began to read it."""
    stream = shim.stream("a", "Hi.")
    next(stream)
    moved = threading.Event()

    def read_on(stream: ReplyStream) -> None:
        next(stream)
        moved.set()
        list(stream)

    reader = threading.Thread(target=read_on, args=(stream,))
    reader.start()
    assert moved.wait(60)
    assert shim.chat("a", "Hi.").content == "".join(LONG)
    reader.join()


def test_a_job_of_a_pool_is_not_inside_what_another_job_began_to_read(shim: Shim) -> None:
    """Web servers read a stream piece by piece on whichever thread is free, in a context of the request."""
    stream = shim.stream("a", "Hi.")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, next, stream).result()
        assert pool.submit(contextvars.copy_context().run, leases_here).result() == []
    stream.close()


def test_streams_that_have_ended_or_were_never_read_cost_a_call_nothing(shim: Shim) -> None:
    """Nothing is remembered of them."""
    with shim.stream("a", "Hi.") as stream:
        assert leases_here() == []
        next(stream)
        assert len(leases_here()) == 1
    assert leases_here() == []
    for _ in shim.stream("a", "Hi."):
        pass
    assert leases_here() == []
    next(shim.stream("a", "Hi."))
    gc.collect()
    assert leases_here() == []
