"""A keeper that says what a test tells it to, on a real Unix socket: what no real one does on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from backends.scripted import Script, ScriptedEngine
from shim.calls.session import Session
from shim.wire.agreed_sections import sections_said
from shim.wire.fingerprint import label_of
from shim.wire.json_lines import VERSION, encode
from tests.engines.support import placement

Message = dict[str, Any]
Says = Callable[[Message], Iterator[Message | list[Message]]]
"""What the keeper says to an op, line by line, or several lines that arrive together; at its end the answer
may be missing."""

HANG_UP: Message = {"hang": "up"}
"""In place of a line: the keeper closes the connection."""


class FakeKeeper:
    """Listens in a folder; each connection is served by a thread.

    Args:
        folder: where its socket is.
        config: what its clients are configured with, so that they agree.
        says: asked with every op but `hello`.
        greets: whether it answers `hello`.
    """

    def __init__(self, folder: Path, config: Any, says: Says, *, greets: bool = True) -> None:
        self.heard: list[Message] = []
        self.connections = 0
        self._said = threading.Condition()
        mine = Session(config).config
        self._hello = {
            "version": VERSION,
            "config": label_of(mine),
            "since": mine.read_at,
            **sections_said(mine),
        }
        self._says, self._greets = says, greets
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(folder / "keeper.sock"))
        self._sock.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def until_heard(self, op: str) -> Message:
        """Return the first message of an op, once it is here."""

        def found() -> Message | None:
            return next((m for m in self.heard if m["op"] == op), None)

        with self._said:
            message = self._said.wait_for(found, 60)
        assert message is not None, f"never heard {op}: {self.heard}"
        return message

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._sock.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                with self._said:
                    self.heard.append(message)
                    self._said.notify_all()
                for answer in self._answers(message):
                    if answer is HANG_UP:
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    together = answer if isinstance(answer, list) else [answer]
                    number = {"id": message.get("id")}
                    said = [m if "notice" in m else {**number, **m} for m in together]
                    connection.sendall(b"".join(map(encode, said)))

    def _answers(self, message: Message) -> Iterator[Message | list[Message]]:
        if message["op"] != "hello":
            yield from self._says(message)
        elif self._greets:
            yield {"ok": self._hello}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        for sock in (self._sock, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextlib.contextmanager
def engine_on_a_thread(folder: Path, script: Script | None = None) -> Iterator[ScriptedEngine]:
    """A scripted engine that is served by an event loop of its own."""
    loop = asyncio.new_event_loop()
    engine = ScriptedEngine("m", folder, script)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(engine.start(placement(), lambda _: None), loop).result(60)
        yield engine
    finally:
        asyncio.run_coroutine_threadsafe(engine.stop(grace_s=1.0), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def grant(engine: ScriptedEngine, lease: str = "r1") -> Message:
    """What a keeper answers whose engine is warm."""
    return {
        "ok": {
            "lease": lease,
            "engine": "e",
            "generation": 1,
            "slot": 0,
            "cold": False,
            "granted_ns": time.monotonic_ns(),
            "endpoint": engine.endpoint.to_wire(),
        }
    }
