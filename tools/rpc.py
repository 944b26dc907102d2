"""llama.cpp's RPC server on loopback: a device without a GPU, for tools, benchmarks and tests."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from backends.llama.binaries import find_binary, library_env
from backends.llama.rpc.servers import answers
from backends.machine.children import serving

_START_LIMIT_S = 20.0


def free_port() -> int:
    """A port of loopback at which no program listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def rpc_process(*options: str, before: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """An RPC server of this build on a free loopback port; yields `host:port` and its process.

    `before` is what starts the program: `chrt`, `prlimit`.
    """
    binary, endpoint = find_binary("ggml-rpc-server"), f"127.0.0.1:{free_port()}"
    host, _, port = endpoint.partition(":")
    command = [*before, str(binary), "--host", host, "--port", port, *options]
    # One arena: with one a thread, the address space says nothing of the memory.
    env = {**os.environ, **library_env(binary), "GGML_NO_BACKTRACE": "1", "MALLOC_ARENA_MAX": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="kw-") as folder,
        serving(
            command, env, Path(folder) / "log", lambda: answers(endpoint), _START_LIMIT_S
        ) as one,
    ):
        yield endpoint, one.pid


@contextlib.contextmanager
def rpc_server(*options: str, before: Sequence[str] = ()) -> Iterator[str]:
    """As `rpc_process`; yields `host:port` alone."""
    with rpc_process(*options, before=before) as (endpoint, _):
        yield endpoint
