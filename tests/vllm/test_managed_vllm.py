"""A real vLLM on the CPU that keepwarm starts: under the budget, watched, and ended whole."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from backends.machine.files.shared_memory import segments_of
from backends.machine.processes import command_line, group_members, process_tree
from backends.machine.unix_http import control_request
from backends.openai import AsyncTransport
from backends.vllm.vllm_engine import VllmEngine, VllmSpec
from budget.errors import EngineDied, InvalidRequest
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim import Shim
from tests.engines.support import HELLO, until
from tests.processes import alive, wait_until
from tests.servers.test_killed_keepers import loaded
from tools.vllm_server import vllm_model, vllm_python

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def shim() -> Iterator[Shim]:
    """A shim with a model that vLLM runs here, and its server under an inline keeper."""
    model = {"backend": "vllm", "path": str(vllm_model()), "python": str(vllm_python())}
    config = {
        "budget": {"device": "host", "limit": "8GiB"},
        "models": {"answers": {**model, "context": 2048, "slots": 4}},
    }
    with Shim(config, inline=True) as made:
        yield made


PLACED = Placement(
    EngineArgs(n_ctx=2048, slots=4),
    {HOST: Footprint(weights_bytes=8 << 20, kv_bytes=16 << 20, compute_bytes=2 << 30)},
    "files",
)


@pytest.fixture(scope="module")
def sleeper() -> Iterator[tuple[VllmEngine, asyncio.AbstractEventLoop]]:
    """An engine of its own on a loop of its own, which all tests of it share."""
    loop = asyncio.new_event_loop()
    spec = VllmSpec(vllm_model(), tuple(vllm_model().iterdir()), str(vllm_python()), sleep=1)
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:

        async def made() -> VllmEngine:
            engine = VllmEngine(spec, "answers", Path(folder))
            await engine.start(PLACED, lambda _fraction: None)
            return engine

        engine = loop.run_until_complete(made())
        yield engine, loop
        loop.run_until_complete(engine.stop(grace_s=5.0))
    loop.close()


def engine_of(shim: Shim) -> dict[str, Any]:
    """The engine's row in the status."""
    (row,) = shim.status()["engines"]
    return dict(row)


def test_a_model_folder_is_served_under_the_budget(shim: Shim) -> None:
    """Loaded by its first request, booked with what it takes, reached over a private socket."""
    reply = shim.chat("answers", "Say hello.", max_tokens=8, temperature=0.0)
    assert reply.residency.cold
    assert reply.usage.completion_tokens == 8
    row = engine_of(shim)
    assert 0 < row["measured"]["host"] <= row["bytes"]["host"] <= 8 << 30
    words = command_line(row["pid"])
    socket = Path(words[words.index("--uds") + 1])
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert words[words.index("--kv-cache-memory-bytes") + 1].isdigit()
    assert 0.0 < float(words[words.index("--gpu-memory-utilization") + 1]) < 1.0
    assert words[words.index("--max-model-len") + 1] == "512"


def test_a_warm_server_answers_and_streams(shim: Shim) -> None:
    """No second load; as many at the same time as it has slots, and the rest wait."""
    with shim.stream("answers", "Say hello.", max_tokens=8, temperature=0.0) as stream:
        text = "".join(piece.content for piece in stream)
    assert text == shim.chat("answers", "Say hello.", max_tokens=8, temperature=0.0).content
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: shim.chat("answers", f"{n}", max_tokens=20), range(8)))
    assert [reply.usage.completion_tokens for reply in replies] == [20] * 8
    assert not any(reply.residency.cold for reply in replies)
    assert engine_of(shim)["generation"] == 1


def test_what_it_cannot_do_is_refused_before_it_is_asked(shim: Shim) -> None:
    """Vectors, and a GBNF grammar, which vLLM would ignore without a word."""
    with pytest.raises(InvalidRequest, match="answers"):
        shim.embed("answers", ["a text"])
    with pytest.raises(InvalidRequest, match="grammar"):
        shim.chat("answers", "hello", grammar='root ::= "x"')


def test_a_killed_server_leaves_no_process_no_memory_and_no_bytes(shim: Shim) -> None:
    """Its engine and its worker would outlive it, and its shared memory both."""
    pid = engine_of(shim)["pid"]
    group = group_members(pid)
    segments = segments_of(group)
    assert len(group) >= 3
    assert segments
    with shim.stream("answers", "Go on.", max_tokens=400) as stream:
        next(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineDied) as caught:
            list(stream)
    assert caught.value.facts["log_tail"]
    assert wait_until(lambda: not group_members(pid))
    assert wait_until(lambda: not any(Path("/dev/shm", name).exists() for name in segments))
    assert wait_until(lambda: engine_of(shim)["bytes"] == {})


def test_a_killed_keeper_leaves_no_process_and_no_memory_of_its_server(tmp_path: Path) -> None:
    """Its engine and its workers get no signal of their parent's death, and change their environment."""
    model = {"backend": "vllm", "path": str(vllm_model()), "python": str(vllm_python())}
    with loaded({**model, "context": 512}, tmp_path) as program:
        tree = process_tree(program.pid)
        assert sum("vllm" in " ".join(command_line(pid)).lower() for pid in tree) >= 2
        segments = segments_of(tree)
        assert segments
        program.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not any(map(alive, tree)))
        assert wait_until(lambda: not any(Path("/dev/shm", name).exists() for name in segments))


@pytest.mark.parametrize("level", [1, 2])
def test_a_server_falls_asleep_and_is_woken_by_its_next_start(
    sleeper: tuple[VllmEngine, asyncio.AbstractEventLoop], level: Literal[1, 2]
) -> None:
    """The same process and the same answer. On the CPU nothing is freed, so that nothing else is shown."""
    engine, loop = sleeper
    engine._spec = replace(engine._spec, sleep=level)

    async def scenario() -> None:
        client = AsyncTransport()
        before, pid = await client.chat(engine.endpoint, HELLO), engine.pid
        assert await engine.sleep() is None, "on the host it would hold as much as before"
        held = await engine.fall_asleep()
        assert held[HOST] > 0
        assert await control_request(engine._socket, "GET", "/is_sleeping") == (
            200,
            {"is_sleeping": True},
        )
        heard: list[float] = []
        report = await engine.start(PLACED, heard.append)
        assert (report.pid, engine.pid, heard[-1]) == (pid, pid, 1.0)
        after = await client.chat(engine.endpoint, HELLO)
        assert after.content == before.content
        await client.aclose()

    loop.run_until_complete(scenario())


def test_a_server_that_does_not_wake_is_started_anew(
    sleeper: tuple[VllmEngine, asyncio.AbstractEventLoop],
) -> None:
    """A server that died in its sleep costs a load, and no request."""
    engine, loop = sleeper

    async def scenario() -> None:
        client = AsyncTransport()
        await engine.fall_asleep()
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert await until(lambda: ended(engine))
        await engine.start(PLACED, lambda _fraction: None)
        assert engine.pid != first
        assert (await client.chat(engine.endpoint, HELLO)).content
        await client.aclose()
        assert group_members(first) == []

    loop.run_until_complete(scenario())


async def ended(engine: VllmEngine) -> bool:
    """Whether the server's process is gone."""
    return not await engine.healthy()
