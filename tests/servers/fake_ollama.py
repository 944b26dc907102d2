"""A server with the shapes of Ollama's public documentation (`docs/api.md`, v0.5); it is not Ollama."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("Hel", "lo", " you")
FIGURES = {
    "total_duration": 4_883_583_458,
    "load_duration": 1_334_875,
    "prompt_eval_duration": 342_546_000,
    "eval_duration": 453_599_000,
}
BYTES = 5_137_025_024
LONGEST = 4096
"""Tokens of a text that its embedder takes."""


class FakeOllama(ThreadingHTTPServer):
    """Answers on a free port of the loopback; remembers what it was asked, and what is in memory."""

    daemon_threads = True

    def __init__(self, *known: str) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.known = known
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.in_memory: set[str] = set()
        self.breaks_off = False
        self.words: Sequence[str] = WORDS
        self.busy = 0
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection while it is open."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget it."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hangs up is no error."""

    def crash(self) -> None:
        """Cut all connections, and listen no more."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


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
            self._embed(name, body["input"])
        elif not body["messages"]:
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            self._answer(200, _said("", done=True, done_reason=reason))
        elif body["stream"]:
            self._stream(*_talk(self.server.words, body))
        elif body.get("tools"):
            call = {"function": {"name": "book", "arguments": {"label": "spam"}}}
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
            done = {"done_reason": "stop", "done": True, **_talk((), body)[1]}
            self._answer(200, {"model": name, "message": message, **done})
        else:
            words, last = _talk(self.server.words, body)
            self._answer(200, _said("".join(words), done=not self.server.breaks_off, **last))

    def _embed(self, name: str, texts: list[str]) -> None:
        if any(len(text.split()) > LONGEST for text in texts):
            self._answer(400, {"error": "input length exceeds maximum context length"})
            return
        vectors = [[float(len(text)), 0.5] for text in texts]
        self._answer(200, {"model": name, "embeddings": vectors, "prompt_eval_count": 8})

    def _stream(self, words: Sequence[str], last: dict[str, Any]) -> None:
        self.server.busy += 1
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            for word in words:
                self._line(_said(word, done=False))
            if not self.server.breaks_off:
                self._line({"model": "llama3.2", "done": True, **last})
        finally:
            self.server.busy -= 1

    def _line(self, row: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(row).encode() + b"\n")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _talk(known: Sequence[str], body: dict[str, Any]) -> tuple[Sequence[str], dict[str, Any]]:
    """The words of an answer, and the figures after them: as the options ask for."""
    options, words, ended = body.get("options", {}), known, "stop"
    if options.get("temperature", 0.0) > 0 and "seed" in options:
        words = random.Random(options["seed"]).sample(known, len(known))
    if "format" in body:
        words = [json.dumps(_fitting(body["format"]))]
    elif -1 < (most := options.get("num_predict", -1)) < len(words):
        words, ended = words[:most], "length"
    for stop in options.get("stop", ()):
        if stop in (text := "".join(words)):
            words, ended = [text[: text.index(stop)]], "stop"
    asked = [json.dumps(tool) for tool in body.get("tools", ())]
    asked += [str(message.get("content")) for message in body["messages"]]
    figures = {"prompt_eval_count": 25 + len(" ".join(asked).split()), "eval_count": len(words)}
    return words, {"done_reason": ended, **FIGURES, **figures}


def _fitting(schema: dict[str, Any]) -> Any:
    """A value of a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    fields = schema.get("properties", {})
    return {name: _fitting(field) for name, field in fields.items()} if fields else 1


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
