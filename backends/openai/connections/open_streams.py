"""The open connections of a pool, so that any thread can end them and a forked child can drop them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any, Protocol
from weakref import WeakSet

from backends.machine.forks import renew_after_fork


class NetworkStream(Protocol):
    """A connection of httpcore's."""

    def get_extra_info(self, info: str) -> Any:
        """Among others, its `socket`."""
        ...


class OpenStreams:
    """Every connection that is not closed yet, idle or in use.

    One that is made while the others are shut down, or later, is shut down as well: its request had begun
    before, and no thread would end it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: WeakSet[NetworkStream] = WeakSet()
        self._shut_down = False
        renew_after_fork(self)

    def add(self, stream: NetworkStream) -> None:
        """A connection was made."""
        with self._lock:
            self._streams.add(stream)
            late = self._shut_down
        if late:
            _wake(stream)

    def shut_down(self) -> None:
        """Shut all down, which wakes threads that wait on one. Closing a descriptor would not wake them."""
        with self._lock:
            streams, self._shut_down = list(self._streams), True
        for stream in streams:
            _wake(stream)

    def forked(self) -> None:
        """In a forked child: leave the connections to the parent alone.

        If the child kept a copy, the engine would not see that the parent closed its own, and would go on
        generating. The objects here still use their descriptors, so these are redirected to nothing.
        """
        self._lock = threading.Lock()
        inherited: list[int] = []
        for stream in self._streams:
            with contextlib.suppress(OSError, AttributeError):
                inherited.append(stream.get_extra_info("socket").fileno())
        self._streams = WeakSet()
        if inherited:
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for descriptor in inherited:
                if descriptor >= 0:
                    os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)


def _wake(stream: NetworkStream) -> None:
    # Closed meanwhile, or encrypted by another object.
    with contextlib.suppress(OSError, AttributeError):
        stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
