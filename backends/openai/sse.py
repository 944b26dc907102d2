"""Server-sent events, incrementally: bytes in, the data of each whole event out."""

from __future__ import annotations

from budget.errors import EndpointError

MAX_EVENT_BYTES = 16 << 20


class SseParser:
    """Splits a byte stream into events; comments and fields other than `data` are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes, in order.

        Raises:
            EndpointError: one event is larger than 16 MiB.
        """
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        events: list[bytes] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise EndpointError(f"an event of the stream is larger than {MAX_EVENT_BYTES} bytes.")
        return events

    @property
    def pending(self) -> bytes:
        """Bytes of an unfinished event, for an error that quotes them."""
        return b"\n".join([*self._data, self._rest])
