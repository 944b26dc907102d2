"""A small server as a user could have one, in one file that is run by Python, and placements for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from budget.footprint import HOST, EngineArgs, Footprint, Placement

ITS_CODE = """
import json, os, signal, socket, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Door(BaseHTTPRequestHandler):
    def log_message(self, *_): print("asked", flush=True) if "refuses" in flags else None
    def address_string(self): return "client"
    def do_GET(self):
        if "refuses" in flags:
            return self.answer(500, {"error": "no weights, and the key is " + WANTED})
        ready = not os.path.exists("not-ready")
        self.answer(200 if ready else 503, {"status": "ok" if ready else "loading"})
    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if WANTED and self.headers.get("Authorization") != "Bearer " + WANTED:
            return self.answer(401, {"error": {"message": "no such key", "code": 401}})
        if self.path == "/inference":
            return self.answer(200, {"text": "heard", "bytes": len(raw), "pid": os.getpid()})
        if self.path == "/leak":
            return self.answer(500, {"error": {"message": "your key is " + WANTED}})
        if self.path == "/half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            return
        if self.path == "/not-gzip":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"half")
            return
        if self.path.startswith("/away/"):
            self.send_response(307)
            self.send_header("Location", self.path.removeprefix("/away/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/die":
            print("about to die", flush=True)
            os._exit(7)
        asked = json.loads(raw)
        if self.path == "/v1/embeddings":
            rows = [{"index": i, "embedding": [float(len(t))]} for i, t in enumerate(asked["input"])]
            return self.answer(200, {"data": rows, "usage": {"prompt_tokens": 1}})
        words, usage = ["Hello", " you"], {"prompt_tokens": 3, "completion_tokens": 2}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.answer(200, {"choices": [choice], "usage": usage})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for n, word in enumerate(words):
            end = "stop" if n == len(words) - 1 else None
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": end}
            self.event({"choices": [choice]})
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\\n\\n")
    def event(self, row):
        self.wfile.write(b"data: " + json.dumps(row).encode() + b"\\n\\n")
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

class OnSocket(ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    def server_bind(self):
        self.socket.bind(self.server_address)

where, *flags = sys.argv[1:]
WANTED = os.environ.get("SERVER_KEY", "")
print("begins with key", WANTED, flush=True)
if "exits" in flags:
    print("there is no such model", flush=True)
    sys.exit(3)
if "child" in flags:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open("child", "w").write(str(child.pid))
if "asked" in flags:
    def end(*_):
        open("ended", "w").write("well")
        os._exit(0)
    signal.signal(signal.SIGINT, end)
if "heavy" in flags:
    held = bytearray(os.urandom(1)) * (96 << 20)
if "sleeps" in flags:
    time.sleep(600)
if "elsewhere" in flags:
    where = "0"
if where.startswith("/"):
    server = OnSocket(where, Door)
else:
    server = ThreadingHTTPServer(("127.0.0.1", int(where)), Door)
if "elsewhere" in flags:
    print("Application startup complete.", flush=True)
server.serve_forever()
"""


def write_server(folder: Path) -> Path:
    """Put the server's file into a folder, and return that."""
    (folder / "door.py").write_text(ITS_CODE)
    return folder


def command(*flags: str, where: str = "{port}") -> list[str]:
    """The command of the server."""
    return [sys.executable, "-u", "door.py", where, *flags]


def server(*flags: str, where: str = "{port}", **more: Any) -> dict[str, Any]:
    """A model of a configuration that the server serves."""
    keys = {"ready": "/health", "bytes": "64MiB", "can": ["chat", "embed"], **more}
    return {"command": command(*flags, where=where), **keys}


def placed() -> Placement:
    """A small placement on the host."""
    return Placement(EngineArgs(n_ctx=0), {HOST: Footprint(weights_bytes=1 << 26)}, "declared")
