"""The facts that lines of llama-server's log hold."""

from __future__ import annotations

import re
from collections.abc import Iterable

from backends.llama.rpc.device_names import DeviceNames

UNKNOWN_SERVERS = DeviceNames()
"""Device names of an engine with unknown RPC servers."""

_BUFFER = re.compile(r":\s+(\S+)\s+.*\bbuffer size\s*=\s*([\d.]+) MiB")
_REFUSED = re.compile(r"(?:unable|failed) to allocate (\S+) buffer")
_RPC_CUT = re.compile(r"Remote RPC server crashed")


def buffer_bytes(lines: Iterable[str], names: DeviceNames = UNKNOWN_SERVERS) -> dict[str, int]:
    """Bytes by device over every `buffer size` line; llama.cpp prints MiB with two decimals."""
    found: dict[str, int] = {}
    for line in lines:
        hit = _BUFFER.search(line)
        if hit:
            device = names.of_buffer(hit.group(1))
            found[device] = found.get(device, 0) + round(float(hit.group(2)) * (1 << 20))
    return found


def refused_device(lines: Iterable[str], names: DeviceNames = UNKNOWN_SERVERS) -> str | None:
    """The device that refused a buffer, by the first line that names it."""
    hits = (_REFUSED.search(line) for line in lines)
    return next((names.of_buffer(hit.group(1)) for hit in hits if hit), None)


def rpc_was_cut(lines: Iterable[str]) -> bool:
    """Whether llama.cpp aborted because an RPC server ended the connection."""
    return any(_RPC_CUT.search(line) for line in lines)
