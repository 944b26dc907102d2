"""A server with the shapes of Ollama's public documentation (`docs/api.md`, v0.5); it is not Ollama."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("Hel", "lo", " you")
FIGURES = {
    "total_duration": 4_883_583_458,
    "load_duration": 1_334_875,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342_546_000,
    "eval_count": 3,
    "eval_duration": 453_599_000,
}
BYTES = 5_137_025_024


class FakeOllama(ThreadingHTTPServer):
    """Answers on a free port of the loopback; remembers what it was asked, and what is in memory."""

    daemon_threads = True

    def __init__(self, *known: str) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.known = known
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.in_memory: set[str] = set()
        self.breaks_off = False

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Door(BaseHTTPRequestHandler):
    server: FakeOllama

    def log_message(self, *_: object) -> None:
        """Nothing is written."""

    def do_GET(self) -> None:
        rows = self.server.known if self.path == "/api/tags" else sorted(self.server.in_memory)
        self._answer(200, {"models": [_row(name) for name in rows]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        name = body["model"] if ":" in body["model"] else f"{body['model']}:latest"
        if name not in self.server.known:
            said = f'model "{body["model"]}" not found, try pulling it first'
            self._answer(404, {"error": said})
            return
        (set.discard if body.get("keep_alive") == 0 else set.add)(self.server.in_memory, name)
        if self.path == "/api/embed":
            vectors = [[float(len(text)), 0.5] for text in body["input"]]
            self._answer(200, {"model": name, "embeddings": vectors, "prompt_eval_count": 8})
        elif not body["messages"]:
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            self._answer(200, _said("", done=True, done_reason=reason))
        elif body["stream"]:
            self._stream()
        elif body.get("tools"):
            call = {"function": {"name": "book", "arguments": {"label": "spam"}}}
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
            done = {"done_reason": "stop", "done": True, **FIGURES}
            self._answer(200, {"model": name, "message": message, **done})
        else:
            self._answer(200, _said("".join(WORDS), done=True, done_reason="stop", **FIGURES))

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        for word in WORDS:
            self._line(_said(word, done=False))
        if not self.server.breaks_off:
            self._line({"model": "llama3.2", "done_reason": "length", "done": True, **FIGURES})

    def _line(self, row: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(row).encode() + b"\n")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _said(content: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "images": None}
    return {
        "model": "llama3.2",
        "created_at": "2023-08-04T08:52:19.38Z",
        "message": message,
        **more,
    }


def _row(name: str) -> dict[str, Any]:
    row = {"name": name, "model": name, "size": BYTES, "size_vram": BYTES, "digest": "2ae6f6dd"}
    return row | {"expires_at": "2024-06-04T14:38:31.83753-07:00", "details": {"format": "gguf"}}


@contextlib.contextmanager
def fake_ollama(*known: str) -> Iterator[FakeOllama]:
    """Runs it meanwhile."""
    server = FakeOllama(*known)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
