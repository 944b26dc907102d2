"""Server-sent events, incrementally: bytes in, the data of each whole event out."""

from __future__ import annotations

import json

from backends.foreign.foreign_json import BYTE_ORDER_MARK, BadJson, parse_json
from backends.openai.connections.bounds import EVENT_BYTES, FOREIGN_BYTES
from budget.errors import EndpointError

_KNOWN = (b":", b"event", b"id", b"retry")


class SseParser:
    """Splits a byte stream into events: lines end with LF, CRLF or CR, comments are left out.

    `foreign` collects lines of other content, up to 4 KiB: a web page, say. A body that begins with a
    brace is no stream but one document of JSON (`is_document`): all of it is one event, at its end.
    """

    def __init__(self) -> None:
        self.foreign = b""
        self.is_document = False
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._is_error = self._begun = False
        self._is_first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes, in order.

        Raises:
            EndpointError: one event is larger than 4 MiB. What comes before it is returned first.
        """
        if not chunk:
            return []
        if self._after_cr or b"\r" in chunk:
            chunk = self._line_feeds(chunk)
        first, *rest = chunk.split(b"\n")
        self._line.append(first)
        self._line_bytes += len(first)
        events: list[bytes] = []
        if rest:
            self._take(b"".join(self._line), events)
            for line in rest[:-1]:
                self._take(line, events)
            self._line, self._line_bytes = [rest[-1]], len(rest[-1])
        if self._line_bytes + self._data_bytes > EVENT_BYTES and not events:
            raise EndpointError(f"an event of the stream is larger than {EVENT_BYTES} bytes.")
        return events

    def finish(self) -> list[bytes]:
        """The data of a last event that no empty line followed, at the end of the stream."""
        events: list[bytes] = []
        self._take(b"".join(self._line), events)
        if self.is_document:
            return [b"\n".join(self._data)]
        self._take(b"", events)
        self._line, self._line_bytes = [], 0
        return events

    def _line_feeds(self, chunk: bytes) -> bytes:
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(BYTE_ORDER_MARK)
        if self.is_document:
            self._data.append(line)
            self._data_bytes += len(line) + 1
        elif line.startswith(b"data:"):
            self._begun = True
            self._data.append(line[5:].removeprefix(b" "))
            self._data_bytes += len(line)
        elif line.startswith(b"error:"):
            # llama.cpp sent errors under this name in 2025.
            events.append(_as_error(line[6:]))
        elif not line:
            if self._data:
                data = b"\n".join(self._data)
                events.append(_as_error(data) if self._is_error else data)
                self._data, self._data_bytes = [], 0
            self._is_error = False
        elif line.startswith(b"event:"):
            # An event of this name has the error in its data, in any form.
            self._is_error = line[6:].strip() == b"error"
        elif line.lstrip().startswith(b"{") and not self._begun and not self.foreign:
            self.is_document = True
            self._take(line, events)
        elif not line.startswith(_KNOWN) and len(self.foreign) < FOREIGN_BYTES:
            self.foreign += line[:FOREIGN_BYTES] + b"\n"


def _as_error(said: bytes) -> bytes:
    """A server's text of an error, in the form of a JSON error."""
    try:
        parse_json(said)
    except BadJson:
        said = json.dumps(said.decode("utf-8", "replace")).encode()
    return b'{"error":' + said + b"}"
