"""The client's side of Python workers against broken ones: every answer is a value or a typed error."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.base import Capabilities, Endpoint
from backends.engine_process import surroundings
from backends.flows import run_blocking
from backends.openai.connections.bounds import Timeouts
from backends.python.frames import MARK, PREFIX, framed
from backends.python.links import LoopLink, ThreadLink
from backends.python.python_engine import PythonEngine, WorkerSpec
from backends.python.worker_calls import WorkerCalls
from budget.errors import EndpointError, EngineDied, EngineTimeout, KeepwarmError, WorkerError
from budget.footprint import HOST, EngineArgs, Footprint, Placement

Answer = Callable[[socket.socket], None]


@contextmanager
def worker(folder: Path, answer: Answer) -> Iterator[Endpoint]:
    """Something that listens where a worker should, and answers one call."""
    path = folder / "w.sock"
    ended = threading.Event()

    def serve() -> None:
        sock, _ = listening.accept()
        with sock:
            sock.recv(1 << 16)
            answer(sock)
            ended.wait(60)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Endpoint.of_engine("m", path, Capabilities(call=True), "python")
        finally:
            ended.set()
            thread.join()


def say(data: bytes, *, close: bool = False) -> Answer:
    """An answer of some bytes."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(data)
        if close:
            sock.shutdown(socket.SHUT_RDWR)

    return answer


HALF = framed("result", "x" * 1000)[0][:100]


@pytest.mark.parametrize("door", ["thread", "loop"])
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (say(b"HTTP/1.1 200 OK\r\n\r\n"), EndpointError, "no frames of keepwarm"),
        (say(PREFIX.pack(MARK, 2, 0, 0) + b"[]"), EndpointError, "not well-formed"),
        (say(HALF, close=True), EngineDied, "closed the connection"),
        (say(b"", close=True), EngineDied, "closed the connection"),
        (say(HALF), EngineTimeout, "took over 0.3 s"),
        (say(framed("error", {"type": "E", "message": "no"})[0]), WorkerError, "m raised E: no"),
        (say(framed("error", "odd")[0]), WorkerError, "m raised error"),
        (say(framed("surprise", 1)[0]), WorkerError, "m raised surprise"),
    ],
)
def test_a_broken_answer_is_a_typed_error(
    runtime_dir: Path, door: str, answer: Answer, kind: type[KeepwarmError], words: str
) -> None:
    """Another program's bytes, half a frame, silence, and frames that no worker sends."""
    limits = Timeouts(answer_s=0.3)
    run: Callable[[Any], Any] = run_blocking if door == "thread" else asyncio.run
    calls = WorkerCalls(ThreadLink if door == "thread" else LoopLink)
    with worker(runtime_dir, answer) as endpoint, pytest.raises(kind, match=words):
        run(calls.call(endpoint, {}, timeouts=limits))


def test_a_worker_that_is_not_there_is_a_death(runtime_dir: Path) -> None:
    """The keeper is asked what became of it."""
    path = runtime_dir / "gone.sock"
    endpoint = Endpoint.of_engine("m", path, Capabilities(call=True), "python")
    with pytest.raises(EngineDied, match="No such file"):
        run_blocking(WorkerCalls(ThreadLink).call(endpoint, {}))


def test_items_have_bounds_of_their_own(runtime_dir: Path) -> None:
    """The time to the first item, and between two; the time of the caller is not counted."""
    one = say(framed("item", 1)[0])
    limits = Timeouts(first_token_s=20, between_tokens_s=0.2)

    async def items(endpoint: Endpoint) -> list[Any]:
        async with await WorkerCalls(LoopLink).stream(endpoint, {}, timeouts=limits) as stream:
            return [item async for item in stream]

    with (
        worker(runtime_dir, one) as endpoint,
        pytest.raises(EngineTimeout, match=r"the next item took over 0\.2 s"),
    ):
        asyncio.run(items(endpoint))


@pytest.mark.parametrize(("device", "sees"), [("cuda:1", "GPU-b"), (HOST, "")])
def test_a_worker_sees_the_gpu_that_it_is_booked_on_and_no_other(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, device: str, sees: str
) -> None:
    """By UUID, so that it is number 0 to its code whatever the caller's environment says."""
    monkeypatch.setattr(surroundings, "gpu_uuids", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "m.py").write_text(
        "import os\nclass M:\n    def __call__(self): return os.environ['CUDA_VISIBLE_DEVICES']\n"
    )
    parts = {device: Footprint(weights_bytes=1 << 26), HOST: Footprint(weights_bytes=1 << 26)}
    placed = Placement(EngineArgs(n_ctx=0), parts, "declared")

    async def ask() -> Any:
        engine = PythonEngine(WorkerSpec("m:M", cwd=tmp_path), "m", runtime_dir)
        try:
            await engine.start(placed, lambda _fraction: None)
            return await WorkerCalls(LoopLink).call(engine.endpoint, {})
        finally:
            await engine.stop(grace_s=0.0)

    assert asyncio.run(ask()) == sees
