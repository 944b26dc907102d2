"""The keeper's line to a Python worker: the order to load goes down, and how it went comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any, Final

_PIECE: Final = 1 << 16
_MOST: Final = 1 << 20
"""Bytes of all that a worker says here: one line with a bounded traceback."""


class Control:
    """Our end of a socket pair. When it is closed, the worker finishes its calls and ends.

    Args:
        ours: the end; closed here.
    """

    def __init__(self, ours: socket.socket) -> None:
        ours.settimeout(0.0)
        self._socket = ours
        self._heard = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._read)
        self.said = asyncio.Event()
        """Set once the worker has said how its load went."""
        self.state: Mapping[str, Any] = {}
        """What it said; empty until then."""

    def send(self, order: Mapping[str, Any]) -> None:
        """Send the order to load. A worker that is gone is seen by its exit."""
        data = json.dumps(order).encode() + b"\n"
        self._socket.settimeout(1.0)
        with contextlib.suppress(OSError):
            self._socket.sendall(data)
        self._socket.settimeout(0.0)

    def _read(self) -> None:
        try:
            piece = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._heard += piece
        line, ended, _ = self._heard.partition(b"\n")
        if ended:
            with contextlib.suppress(ValueError):
                state = json.loads(line)
                self.state = state if isinstance(state, dict) else {}
            self.said.set()
        if ended or not piece or len(self._heard) > _MOST:
            self._loop.remove_reader(self._socket)

    def close(self) -> None:
        """Close our end. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
