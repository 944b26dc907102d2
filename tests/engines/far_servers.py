"""Servers of other users, started on loopback ports: llama-server, vLLM, and one with Ollama's shapes."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.base import Endpoint
from backends.engine_process.process import engine_environment
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.machine.processes import process_tree
from budget.footprint import EngineArgs
from tests.engines.support import listening
from tests.servers.fake_ollama import fake_ollama
from tools.vllm_server import NAME, vllm_model, vllm_server


@dataclass(frozen=True)
class Started:
    """A server that runs: its address, what ends it as a crash would, and how many requests it works on."""

    endpoint: Endpoint
    crash: Callable[[], None]
    busy: Callable[[], int] = lambda: 0


class FarServer:
    """A server of another user: started at the first question, and again after it was stopped."""

    def __init__(self, start: Callable[[Path], contextlib.AbstractContextManager[Started]]) -> None:
        self._start = start
        self._ending = contextlib.ExitStack()
        self._started: Started | None = None

    def endpoint(self) -> Endpoint:
        """Where it answers."""
        if self._started is None:
            folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="kw-")))
            self._started = self._ending.enter_context(self._start(folder))
        return self._started.endpoint

    def crash(self) -> None:
        """End it as a crash would."""
        assert self._started is not None
        self._started.crash()

    def busy(self) -> int:
        """How many requests it works on, where only the server itself knows."""
        return self._started.busy() if self._started is not None else 0

    def stop(self) -> None:
        """End it; the next question starts it again."""
        self._started = None
        self._ending.close()


def _kill(server: int) -> None:
    """Kill the processes in which the model runs: the children where there are any, or the server."""
    children = [pid for pid in process_tree(server) if pid != server]
    for pid in children or [server]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def llama_command(model: Path, name: str, folder: Path, args: EngineArgs) -> list[str]:
    """A llama-server on loopback; the words that choose its port are missing."""
    settings = LaunchSettings(model, name, folder / "x.sock", folder, 1, 1)
    argv = server_argv(find_binary("llama-server"), args, settings)
    argv[argv.index("--host") + 1] = "127.0.0.1"
    # A connection that is kept alive holds a thread for five seconds.
    return [*argv, "--threads-http", "32"]


@contextlib.contextmanager
def far_llama(model: Path, folder: Path, args: EngineArgs) -> Iterator[Started]:
    """A real llama-server on a free loopback port."""
    argv = [*llama_command(model, "far", folder, args), "--port", "0"]
    env = engine_environment(folder, library_env(find_binary("llama-server")))
    log = folder / "log"
    with serving(argv, env, log, lambda: bool(listening(log))) as server:
        yield Started(Endpoint(listening(log), "far", "openai"), lambda: _kill(server.pid))


@contextlib.contextmanager
def far_vllm(folder: Path) -> Iterator[Started]:
    """A real vLLM on the CPU."""
    with vllm_server(vllm_model(), folder / "log") as server:
        yield Started(Endpoint(server.url, NAME, "vllm"), lambda: _kill(server.pid))


@contextlib.contextmanager
def far_ollama(_folder: Path) -> Iterator[Started]:
    """A server with Ollama's shapes, whose model has much to say."""
    with fake_ollama("far:latest") as server:
        server.words = tuple(f"word{number} " for number in range(50_000))
        yield Started(Endpoint(server.url, "far", "ollama"), server.crash, lambda: server.busy)
