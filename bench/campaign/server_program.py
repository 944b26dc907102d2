"""The campaign's server, `python server_program.py PORT FOLDER`: a chat that always says the same.

It needs nothing but the standard library. Mischief lies in files of the folder: the first request, or the
start, that finds one takes it and does what it says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from worker_model import taken

FOLDER = Path(sys.argv[2])
WORDS = ("Hello", " you")
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Door(BaseHTTPRequestHandler):
    """Health, and chats in one piece or streamed."""

    def log_message(self, *_said: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Its health."""
        self._answer({"status": "ok"})

    def do_POST(self) -> None:
        """A chat, or some mischief."""
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        mischief = taken(FOLDER / "server-mischief")
        if mischief == "exit":
            os._exit(7)
        if mischief == "close":
            self.close_connection = True
        elif mischief == "fail":
            self._answer({"error": {"message": "as it was told", "code": 500}}, status=500)
        elif asked.get("stream"):
            self._stream(mischief)
        else:
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer({"choices": [choice], "usage": USAGE}, mischief=mischief)

    def _answer(self, body: dict[str, Any], *, status: int = 200, mischief: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if mischief == "malformed":
            data = b"\xff{" * (len(data) // 2) + b"}" * (len(data) % 2)
        if mischief == "half":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def _stream(self, mischief: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for number, word in enumerate(WORDS):
            if mischief == "malformed":
                self.wfile.write(b'data: {"choices": [{"delta": \xff\n\n')
                return
            if mischief == "half" and number:
                return
            end = "stop" if number == len(WORDS) - 1 else None
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": end}
            self._event({"choices": [choice]})
        self._event({"choices": [], "usage": USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, row: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(row).encode() + b"\n\n")


if __name__ == "__main__":
    port = int(sys.argv[1])
    at_start = taken(FOLDER / "server-load")
    if at_start == "exit":
        print("there is no such model", flush=True)
        sys.exit(3)
    if at_start == "hang":
        time.sleep(600)
    if at_start == "elsewhere":
        port = 0
    ThreadingHTTPServer(("127.0.0.1", port), Door).serve_forever()
