"""A prompt whose evaluation gets on is no stall: llama.cpp tells, and each step begins the wait anew."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import AsyncTransport, ChatRequest, SyncTransport, Timeouts
from backends.openai.answers.reading import StreamReader
from backends.openai.connections.bounds import Bounds
from backends.openai.masking import NO_SECRETS
from budget.errors import EngineTimeout
from tests.engines.hostile import EVENT_STREAM, head, listening, read_whole, token
from tests.engines.support import llama, placement, running
from tests.engines.test_bounded_time import Clock

_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_ASK = ChatRequest("x", {"max_tokens": 3})
_FAR = Endpoint("http://far", "m", "llama.cpp")


def _step(processed: Any) -> bytes:
    delta = {"role": "assistant", "content": None}
    progress = {"total": 100, "cache": 0, "processed": processed, "time_ms": 1}
    chunk = {"choices": [{"index": 0, "delta": delta}], "prompt_progress": progress}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def test_a_step_of_the_prompt_is_no_piece_of_the_answer() -> None:
    """The reader counts the tokens, whatever an odd server says, and gives on what the model says."""
    reader = StreamReader(_FAR, NO_SECRETS)
    steps = (0, 40, "x", None, 30, True)
    assert reader.feed(b"".join(map(_step, steps)) + b'data: {"prompt_progress": 7}\n\n') == []
    assert (reader.evaluated, reader.events) == (40, len(steps) + 1)
    said = reader.feed(token("hi") + _END)
    assert "".join(map(str, said)) == "hi"
    assert reader.done


def test_the_wait_for_the_first_token_begins_anew_with_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the time in all, nor the wait for the next token."""
    clock = Clock(monkeypatch)
    limits = Bounds(_FAR, Timeouts(first_token_s=10, between_tokens_s=5), None, 25)
    limits.begin("the first token", 10)
    for left_s in (10, 9, 1):
        clock.now += 8
        limits.advanced()
        assert limits.left_s() == pytest.approx(left_s)
    limits.heard(1, 1)
    clock.now += 1
    limits.advanced()
    with pytest.raises(EngineTimeout, match="the whole answer"):
        limits.left_s()


@pytest.mark.parametrize(
    ("backend", "first_token_s", "asked"),
    [("llama.cpp", 600.0, True), ("llama.cpp", math.inf, False), ("vllm", 600.0, False)],
)
def test_only_llama_cpp_is_asked_for_its_steps_and_only_where_the_wait_is_bounded(
    backend: Any, first_token_s: float, *, asked: bool
) -> None:
    """An engine here has no such bound by default: the keeper looks whether it gets on."""
    seen: list[dict[str, Any]] = []

    def serve(connection: socket.socket) -> None:
        seen.append(json.loads(read_whole(connection)[1]))
        connection.sendall(EVENT_STREAM + token("hi") + _END)

    with listening(serve) as endpoint:
        client = SyncTransport(Timeouts(first_token_s=first_token_s))
        list(client.stream(replace(endpoint, backend=backend), _ASK))
        client.close()
    assert ("return_progress" in seen[0]) is asked


def test_an_endpoint_that_refuses_to_tell_its_steps_is_asked_once() -> None:
    """A strict proxy before a llama-server: the caller gets the answer, the next call asks without."""
    seen: list[dict[str, Any]] = []

    def serve(connection: socket.socket) -> None:
        seen.append(json.loads(read_whole(connection)[1]))
        refused = head(400) + b'{"error": {"message": "Unknown parameter: return_progress"}}'
        good = EVENT_STREAM + token("hi") + _END
        connection.sendall(refused if "return_progress" in seen[-1] else good)

    with listening(serve) as endpoint:
        client = SyncTransport()
        for _ in range(2):
            answer = client.stream(replace(endpoint, backend="llama.cpp"), _ASK)
            assert "".join(map(str, answer)) == "hi"
        client.close()
    assert ["return_progress" in body for body in seen] == [True, False, False]
    assert all("stream_options" in body for body in seen)


@pytest.mark.real
def test_a_real_llama_server_tells_its_steps(
    tiny_models: dict[str, Path], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of many batches: a step for each, and the wait begins anew with each."""
    steps: list[int] = []
    advanced = Bounds.advanced

    def noted(bounds: Bounds) -> None:
        steps.append(bounds.events)
        advanced(bounds)

    monkeypatch.setattr(Bounds, "advanced", noted)

    async def run() -> str:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine, placement(n_ctx=2048, n_batch=128)):
            transport = AsyncTransport(Timeouts(first_token_s=60.0))
            long = ChatRequest("tell " * 300, {"max_tokens": 4, "temperature": 0.0})
            stream = await transport.stream(engine.endpoint, long)
            text = "".join([str(piece) async for piece in stream])
            plain = await transport.chat(engine.endpoint, long)
            assert text == plain.content
            return text

    assert asyncio.run(run())
    assert len(steps) > 3
