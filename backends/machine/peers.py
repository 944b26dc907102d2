"""The process at the other end of a Unix socket, by the kernel's word."""

from __future__ import annotations

import socket
import struct
from typing import Final

_UCRED: Final = "3i"


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """The process and the user that made the other end; process 0 where it is not visible from here.

    Raises:
        OSError: the socket has no other end.
    """
    size = struct.calcsize(_UCRED)
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack(_UCRED, said)
    return int(pid), int(uid)
