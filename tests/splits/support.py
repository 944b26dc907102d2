"""Real RPC servers as devices: started on loopback, bounded, and gone with the test."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.llama.binaries import find_binary, library_env
from backends.llama.process.process import death_signal_wrapper
from backends.llama.rpc.servers import answers

START_S = 20.0


@dataclass(frozen=True)
class RpcServer:
    """A `ggml-rpc-server` that runs."""

    endpoint: str
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A loopback port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def rpc_server(address_space_bytes: int | None = None) -> Iterator[RpcServer]:
    """A `ggml-rpc-server` on a free loopback port; with a limit, one that runs out of memory."""
    binary, port = find_binary("ggml-rpc-server"), free_port()
    limit = []
    if address_space_bytes is not None:
        limit = [str(shutil.which("prlimit")), f"--as={address_space_bytes}", "--"]
    process = subprocess.Popen(
        [*death_signal_wrapper(), *limit, str(binary), "--port", str(port), "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # One arena: with one a thread, the address space says nothing of the memory.
        env={**library_env(binary), "GGML_NO_BACKTRACE": "1", "MALLOC_ARENA_MAX": "1"},
    )
    endpoint = f"127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_S
        while not answers(endpoint, timeout_s=0.2):
            assert process.poll() is None, "ggml-rpc-server ended"
            assert time.monotonic() < end, "ggml-rpc-server does not listen"
            time.sleep(0.01)
        yield RpcServer(endpoint, process)
    finally:
        process.kill()
        process.wait()


def idle_bytes() -> int:
    """The address space that an RPC server takes before anybody uses it."""
    with rpc_server() as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    size = next(line for line in status.splitlines() if line.startswith("VmPeak:"))
    return int(size.split()[1]) * 1024
