"""A real vLLM on the CPU that keepwarm starts: under the budget, watched, and ended whole."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.machine.files.shared_memory import segments_of
from backends.machine.processes import command_line, group_members
from budget.errors import EngineDied, InvalidRequest
from shim import Shim
from tests.processes import wait_until
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
    assert wait_until(lambda: not group_members(pid), 10.0)
    assert wait_until(lambda: not any(Path("/dev/shm", name).exists() for name in segments), 10.0)
    assert wait_until(lambda: engine_of(shim)["bytes"] == {}, 10.0)
