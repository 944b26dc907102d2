"""Small real HTTP servers on loopback that answer as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, str, bytes]
"""Status, content type, body."""
Says = Callable[[str, bytes], Answer]
"""What is answered to a path and a body."""


def as_json(value: Any, status: int = 200) -> Answer:
    """An answer of JSON."""
    return status, "application/json", json.dumps(value).encode()


class SmallServer:
    """A server; `asked` are the paths, headers and bodies that came."""

    def __init__(self, says: Says) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.says = says
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.path, dict(self.headers), body))
                status, kind, told = outer.says(self.path, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            do_GET = do_POST = _answer  # noqa: N815 - the names of http.server

            def log_message(self, *_said: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """End it; its port refuses connections from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def small_server(says: Says) -> Iterator[SmallServer]:
    """A server that runs meanwhile."""
    server = SmallServer(says)
    try:
        yield server
    finally:
        server.close()
