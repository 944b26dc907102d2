"""Whether an RPC server is in use, without disturbing it.

`ggml-rpc-server` serves one client at a time. A second client that sends a request and then gives up kills
the server (SIGPIPE) as soon as the server answers. So a busy server must not be asked, and the kernel's
table of connections is read instead.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator

from backends.machine.cgroups import read_text

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ESTABLISHED = "01"
_POLL_S = 0.02
Address = tuple[str, int]


def in_use(endpoint: str) -> bool:
    """Whether a client is connected to `host:port`: any client of a server here, a local one of another.

    Remote clients of a remote server are not seen. False where the kernel has no such table (not Linux),
    and for a text that is not an address.
    """
    wanted = _addresses(endpoint)
    return any(ends & wanted for ends in _connections(read_text(table) or "" for table in _TABLES))


def free_within(endpoint: str, timeout_s: float) -> bool:
    """Whether `host:port` is free, or becomes free within the time."""
    until_s = time.monotonic() + timeout_s
    while in_use(endpoint):
        if time.monotonic() >= until_s:
            return False
        time.sleep(_POLL_S)
    return True


def _addresses(endpoint: str) -> set[Address]:
    host, _, port = endpoint.rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return set()
    return {(str(row[4][0]), int(row[4][1])) for row in found}


def _connections(tables: Iterable[str]) -> Iterator[set[Address]]:
    """Both ends of each established connection."""
    for table in tables:
        for line in table.splitlines()[1:]:
            columns = line.split()
            if len(columns) > 3 and columns[3] == _ESTABLISHED:
                yield {_address(columns[1]), _address(columns[2])}


def _address(text: str) -> Address:
    """The kernel's `0100007F:C822`: words in the machine's byte order, and the port."""
    digits, _, port = text.partition(":")
    words = bytes.fromhex(digits)
    raw = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found), int(port, 16)
