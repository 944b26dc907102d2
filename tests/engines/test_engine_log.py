"""The log of an engine: read in few steps once the model is loaded, and whole whenever it is asked for."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path

import pytest

from backends.engine_process import log_reader
from backends.engine_process.log import RING_LINES, LogRing
from backends.engine_process.log_reader import LogReader
from backends.engine_process.process import EngineProcess
from backends.llama.log_facts import buffer_bytes

LOADED = b"0.1 I srv  main: model loaded\n"


class CountingRing(LogRing):
    """Counts how often it is given something."""

    feeds = 0

    def feed(self, chunk: bytes) -> None:
        """One reading."""
        self.feeds += 1
        super().feed(chunk)


async def turns(count: int) -> None:
    """Let the loop look at its descriptors so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_loaded_engines_lines_wake_nobody_and_are_there_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dozen lines follow each request; the keeper reads them in its pauses, or when it quotes them."""
    monkeypatch.setattr(log_reader, "PAUSE_S", 3600.0)

    async def scenario() -> None:
        reading, writing = os.pipe()
        ring = CountingRing()
        reader = LogReader(reading, ring)
        os.write(writing, b"0.0 I loading\n")
        await turns(3)
        assert (ring.feeds, ring.said_ready) == (1, False)
        os.write(writing, LOADED)
        await turns(3)
        assert (ring.feeds, ring.said_ready) == (2, True)
        for number in range(20):
            os.write(writing, b"0.2 I slot print_timing: %d\n" % number)
            await turns(3)
        assert ring.feeds == 2
        assert reader.up_to_now().lines[-1].endswith("print_timing: 19")
        os.write(writing, b"0.3 E the last words")
        os.close(writing)
        await reader.until_end(5.0)
        assert ring.tail[-1] == "0.3 E the last words"

    asyncio.run(scenario())


def test_a_pipe_that_is_held_open_does_not_hold_up_the_news_of_a_death() -> None:
    """A grandchild may hold it; what was written is read, and the pipe is closed."""

    async def scenario() -> None:
        reading, writing = os.pipe()
        reader = LogReader(reading, LogRing())
        os.write(writing, b"0.1 E GGML_ASSERT\n")
        await reader.until_end(0.0)
        assert reader.up_to_now().lines == ("0.1 E GGML_ASSERT",)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)
        os.close(writing)

    asyncio.run(scenario())


def test_a_loop_that_ends_before_its_engine_leaves_no_descriptor() -> None:
    """As the loop of an inline keeper does, when its end has taken too long."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def scenario() -> int:
        return EngineProcess.spawn(["sleep", "60"], dict(os.environ)).pid

    pid = asyncio.run(scenario())
    os.kill(pid, signal.SIGKILL)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_ready_is_said_once_and_at_the_first_line_that_says_it() -> None:
    """Also where the line comes in two pieces."""
    said: list[int] = []
    ring = LogRing(lambda: said.append(ring.lines_seen))
    ring.feed(b"0.0 I loading\n0.1 I model lo")
    assert said == []
    ring.feed(b"aded\n0.2 I server is listening\n")
    assert said == [2]


def test_the_phases_of_a_load_are_told_apart_by_their_first_lines() -> None:
    """Each once, in the order of the load; lines after it are of requests."""
    ring = LogRing()
    for line in (b"srv load_model: loading model 'm'", b"llama_model_loader: loaded meta data"):
        ring.feed(line + b"\n")
    assert list(ring.marks) == ["header"]
    first = ring.marks["header"]
    ring.feed(b"llama_model_loader: - kv 0\nload_tensors: CPU model buffer size = 1 MiB\n")
    ring.feed(b"llama_context: n_ctx = 512\n" + LOADED + b"load_tensors: again\n")
    assert list(ring.marks) == ["header", "weights", "buffers"]
    assert ring.marks["header"] == first
    assert list(ring.marks.values()) == sorted(ring.marks.values())


def test_secrets_are_masked_and_long_lines_cut_when_the_log_is_read() -> None:
    """Neither reaches an error or the keeper's log; a line without an end takes no memory without end."""
    ring = LogRing()
    ring.feed(b"Authorization: Bearer abcdef123456\n" + b"x" * 10_000)
    ring.feed(b"y" * 10_000 + b"\n\n")
    assert ring.lines == ("Authorization: Bearer ***", "x" * 500)
    for number in range(RING_LINES):
        ring.feed(b"load_tensors: CPU model buffer size = %d.00 MiB\n" % (number == 0))
    ring.feed(b"0.1 I a line\n")
    assert len(ring.lines) == RING_LINES
    assert buffer_bytes(ring.buffer_lines) == {"host": 1 << 20}


def test_the_end_of_an_engine_is_read_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words and its end are two readings; a pause between them would delay each swap."""
    monkeypatch.setattr(log_reader, "PAUSE_S", 3600.0)

    async def scenario() -> None:
        reading, writing = os.pipe()
        reader = LogReader(reading, LogRing())
        os.write(writing, LOADED)
        await turns(3)
        os.write(writing, b"0.2 I the last words\n")
        ending = asyncio.ensure_future(reader.until_end(3600.0))
        await turns(3)
        os.close(writing)
        await asyncio.wait_for(ending, 60.0)
        assert reader.up_to_now().lines[-1].endswith("the last words")

    asyncio.run(scenario())


def test_the_log_after_a_line_is_what_came_since() -> None:
    """Lines that the ring has dropped are left out, and a later count than there is has none."""
    ring = LogRing()
    ring.feed(b"one\ntwo\n\nall slots are idle\nall slots are idle\n")
    assert ring.since(0) == (3, ("one", "two", "all slots are idle"))
    assert ring.since(2) == (3, ("all slots are idle",))
    assert ring.since(3) == ring.since(9) == (3, ())
    for number in range(RING_LINES + 5):
        ring.add(b"line %d" % number)
    count, lines = ring.since(3)
    assert (count, len(lines), lines[0]) == (RING_LINES + 8, RING_LINES, "line 5")
