"""Prometheus's side: a small HTTP server on a port of this machine or on a private Unix socket."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, make_wsgi_app

from backends.machine.files.folders import (
    check_socket_path,
    remove_own_socket,
    sockets_are_private,
)
from budget.errors import ConfigError

LOG = logging.getLogger("keepwarm.keeper")

SILENT_S: Final = 5.0
"""A scraper that sends or takes nothing for so long is hung up on."""
SCRAPE_S: Final = 10.0
"""How long one scrape may take in all, however steadily its client sends a byte now and then."""

AT_ONCE: Final = 32
"""Scrapers that are served at a time: silent ones keep none waiting, and no number of them costs the keeper
its descriptors."""
WAITING: Final = 128
"""Further ones that the system lets wait for their turn."""


class Scrapes:
    """Serves the metrics of a reader from a thread, until it is closed.

    Args:
        place: `host:port`, or the path of a Unix socket, which gets mode 0600.

    Raises:
        ConfigError: another file lies at the path.
        OSError: the port or the socket cannot be had.
    """

    def __init__(self, place: str) -> None:
        registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
        app = _in_turn(make_wsgi_app(registry))
        if "/" in place:
            self._server: WSGIServer = _UnixServer(Path(place))
            self._server.set_app(app)
        else:
            host, _, port = place.rpartition(":")
            self._server = _PortServer((host, int(port)), _Handler)
            self._server.set_app(_guarded(app) if _is_loopback(host) else app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="keepwarm-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Take no more scrapes. One that is under way ends by itself."""
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread at once
        self._server.shutdown()
        self._server.server_close()


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S

    def setup(self) -> None:
        super().setup()
        self._watch = threading.Timer(SCRAPE_S, self._hang_up)
        self._watch.daemon = True
        self._watch.start()

    def finish(self) -> None:
        self._watch.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: a scrape is no news."""


class _PortServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = WAITING

    def __init__(self, address: Any, handler: type[_Handler]) -> None:
        self._room = threading.Semaphore(AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a scraper in a thread of its own, once there is room for one more."""
        if self._room.acquire(timeout=SILENT_S):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make room for another one afterwards."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def server_bind(self) -> None:
        # Not the one above, which asks a name server for the host's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "keepwarm", 0
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A scraper that hangs up is no news either."""
        LOG.debug("a scrape failed", exc_info=True)


class _UnixServer(_PortServer):
    address_family = socket.AF_UNIX

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_way(path)
        super().__init__(str(check_socket_path(path)), _Handler)

    def server_bind(self) -> None:
        with sockets_are_private():
            super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, and an address of the form that the handlers expect: here it has none."""
        return super().get_request()[0], ("unix", 0)

    def server_close(self) -> None:
        super().server_close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _make_way(path: Path) -> None:
    """Remove the socket of an earlier keeper."""
    if remove_own_socket(path) is not None:
        raise ConfigError(
            f"{path} is there already, and no socket of yours.",
            hint="Name another path as [metrics] prometheus.",
        )


def _in_turn(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The application for one request at a time: the reader gathers for all of them in one place."""
    turn = threading.Lock()

    def in_turn(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with turn:
            return app(environ, start_response)

    return in_turn


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The application for requests that name this machine: a page whose name points here reads nothing."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")[0]
        if _is_loopback(host):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"Ask for this by the address of the machine's own loopback.\n"]

    return guarded
