"""Real RPC servers as devices: started on loopback, bounded, and gone with the test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.rpc import rpc_process


@dataclass(frozen=True)
class RpcServer:
    """A `ggml-rpc-server` that runs."""

    endpoint: str
    pid: int


@contextlib.contextmanager
def rpc_server(address_space_bytes: int | None = None) -> Iterator[RpcServer]:
    """A `ggml-rpc-server` on a free loopback port; with a limit, one that runs out of memory."""
    limit = []
    if address_space_bytes is not None:
        limit = [str(shutil.which("prlimit")), f"--as={address_space_bytes}", "--"]
    with rpc_process("--threads", "1", before=limit) as (endpoint, pid):
        yield RpcServer(endpoint, pid)


def idle_bytes() -> int:
    """The address space that an RPC server takes before a client uses it."""
    with rpc_server() as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
    size = next(line for line in status.splitlines() if line.startswith("VmPeak:"))
    return int(size.split()[1]) * 1024
