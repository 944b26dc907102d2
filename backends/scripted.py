"""A scripted engine: the whole engine protocol, and a real HTTP server, without a model.

It is public so that programs built on keepwarm can be tested with it. It never waits for a time, only for
an `asyncio.Event` that the test sets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backends.base import Capabilities, Death, Endpoint, LoadReport, Signs, SlotSigns
from budget.errors import EngineDied, InternalError, InvalidRequest, LoadFailed, OutOfMemory
from budget.footprint import Placement

_VECTOR_LENGTH = 8
_TEMPLATE_END = "|"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)


@dataclass
class Script:
    """The behaviour of a scripted engine.

    Attributes:
        tokens: the answer, a chunk each.
        load: how `start` ends.
        load_gate: `start` waits for it, after it has reported half of its progress.
        token_gate: waited for before every token after the first, and before vectors.
        die_after: the engine dies when so many tokens of an answer are sent.
        refuse: answer chat requests with this status and body.
        memory: bytes by device, None for one where they are not known; left out: what was booked.
        cached_bytes: of the host's, pages of mapped files.
        signs: its signs of life. Each look returns the next; the last one repeats. None: healthy ones.
        overgrown: the error that `overgrown` returns.
        buffers: bytes by device that the load reports; None is the placement's, less its overhead.
        storage: `storage` of the load report.
        asleep: the bytes by device that it holds in its sleep; None for one that does not sleep.
        log_tail: the last lines that errors and the death quote.
    """

    tokens: Sequence[str] = ("one ", "two ", "three")
    load: Literal["ok", "fail", "out-of-memory"] = "ok"
    load_gate: asyncio.Event | None = None
    token_gate: asyncio.Event | None = None
    die_after: int | None = None
    refuse: tuple[int, Mapping[str, Any]] | None = None
    memory: Mapping[str, int | None] | None = None
    cached_bytes: int = 0
    signs: list[Signs] | None = None
    overgrown: OutOfMemory | None = None
    buffers: Mapping[str, int] | None = None
    storage: Literal["cold", "staged"] = "staged"
    asleep: Mapping[str, int] | None = None
    log_tail: tuple[str, ...] = ("scripted: last line",)
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(
            embeddings=True, grammar=True, save_restore=True, load_progress=True
        )
    )


class ScriptedEngine:
    """An engine that follows a script; its requests are served on a Unix socket of mode 0600."""

    def __init__(self, model_id: str, runtime_dir: Path, script: Script | None = None) -> None:
        self.script = script or Script()
        self.asleep = False
        self.requests: list[Mapping[str, Any]] = []
        self.active_requests = 0
        self._model_id = model_id
        self._socket = runtime_dir / f"s-{secrets.token_hex(6)}.sock"
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._death: asyncio.Future[Death] | None = None
        self.prepared: Placement | None = None
        self._placement: Placement | None = None
        self._saved: dict[str, int] = {}
        self._looks = 0
        self._kv_folder: Path | None = None
        self.restored: list[tuple[int, str]] = []

    def __repr__(self) -> str:
        return f"<ScriptedEngine {self._model_id} socket={self._socket.name}>"

    @property
    def endpoint(self) -> Endpoint:
        """The engine's socket."""
        return Endpoint.of_engine(self._model_id, self._socket, self.capabilities)

    @property
    def capabilities(self) -> Capabilities:
        """The script's value."""
        return self.script.capabilities

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The script's value."""
        return self.script.log_tail

    def log_since(self, seen: int) -> tuple[int, tuple[str, ...]]:
        """The script's last lines are all of its log."""
        return len(self.script.log_tail), self.script.log_tail[seen:]

    async def prepare(self, placement: Placement) -> None:
        """Note the call."""
        self.prepared = placement

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Load as scripted.

        Raises:
            LoadFailed, OutOfMemory: when the script says so.
        """
        if self._placement is not None and not self.asleep:
            raise InternalError("an engine starts once; make a new one to start again")
        self._placement = placement
        self.asleep = False
        self._death = asyncio.get_running_loop().create_future()
        started_ns = time.monotonic_ns()
        on_progress(0.5)
        if self.script.load_gate is not None:
            await self.script.load_gate.wait()
        self._fail_if_scripted()
        self._server = await asyncio.start_unix_server(self._serve, path=str(self._socket))
        self._socket.chmod(0o600)
        on_progress(1.0)
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage=self.script.storage,
            file_bytes=placement.total_bytes,
            read_bytes=placement.total_bytes if self.script.storage == "cold" else 0,
            buffers=self._buffers(placement),
        )

    def _buffers(self, placement: Placement) -> dict[str, int]:
        if self.script.buffers is not None:
            return dict(self.script.buffers)
        parts = placement.footprints.items()
        return {device: part.total_bytes - part.overhead_bytes for device, part in parts}

    def _fail_if_scripted(self) -> None:
        tail = list(self.script.log_tail)
        if self.script.load == "fail":
            raise LoadFailed(f"{self._model_id} did not load: it was told not to.", log_tail=tail)
        if self.script.load == "out-of-memory":
            raise OutOfMemory(f"{self._model_id} did not load: no bytes left.", log_tail=tail)

    async def sleep(self) -> Mapping[str, int] | None:
        """Close the socket and wait for the next start, where the script says so."""
        if self.script.asleep is None:
            return None
        await self.stop(grace_s=0.0)
        self.asleep = True
        return self.script.asleep

    async def wait_death(self) -> Death:
        """Return once `kill` was called; after `stop` it never returns."""
        if self._death is None:
            raise InternalError("the engine was not started")
        return await asyncio.shield(self._death)

    def kill(self, message: str = "scripted death", *, out_of_memory: bool = False) -> None:
        """End the engine as a crash would: every connection is cut without a message."""
        self._close()
        if self._death is not None and not self._death.done():
            self._death.set_result(Death(message, -9, self.script.log_tail, out_of_memory))

    async def stop(self, *, grace_s: float) -> None:
        """End the engine. Idempotent."""
        del grace_s
        self._close()
        if self._handlers:
            await asyncio.wait(self._handlers)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in tuple(self._connections):
            writer.transport.abort()
        for handler in self._handlers:
            if handler is not asyncio.current_task():
                handler.cancel()
        with contextlib.suppress(OSError):
            self._socket.unlink()

    async def healthy(self) -> bool:
        """Whether the engine has started and not ended."""
        return self._server is not None

    async def signs(self, *, ask: bool) -> Signs | None:
        """The script's next signs, or those of a healthy engine whose requests progress with each look."""
        if self._server is None:
            return None
        if self.script.signs:
            return self.script.signs.pop(0) if len(self.script.signs) > 1 else self.script.signs[0]
        self._looks += 1
        slots = SlotSigns(self.active_requests, moved=((self._looks,),))
        return Signs(slots=slots if ask else None)

    def overgrown(self, measured: Mapping[str, int | None]) -> OutOfMemory | None:
        """The script's."""
        del measured
        return self.script.overgrown if self._server is not None else None

    def ceilings(self) -> Mapping[str, int]:
        """What the placement booked."""
        return {} if self._placement is None else dict(self._placement.bookings)

    def memory(self) -> Mapping[str, int | None]:
        """The script's figures, or what the placement booked; nothing once it has ended."""
        if self._server is None or self._placement is None:
            return {}
        if self.script.memory is not None:
            return dict(self.script.memory)
        return dict(self._placement.bookings)

    def cached_bytes(self) -> int:
        """The script's figure."""
        return self.script.cached_bytes if self._server is not None else 0

    def keep_kv_in(self, folder: Path) -> None:
        """Save KV state in a folder that stays after the engine's end."""
        self._kv_folder = folder

    async def kv_tokens(self) -> Mapping[int, int]:
        """One slot, with the words of the last request and its answer."""
        if not self.requests:
            return {}
        body = self.requests[-1]
        return {0: _words(body) + len(self._tokens(body))}

    async def save_kv(self, slot: int, name: str) -> int:
        """Note a name; returns a made-up size. Writes a file if `keep_kv_in` gave a folder."""
        self._check_kv(slot)
        self._saved[name] = 1024
        if self._kv_folder is not None:
            path = self._kv_folder / name
            path.touch(mode=0o600)
            path.write_bytes(b"\0" * 1024)
        return 1024

    async def restore_kv(self, slot: int, name: str) -> int:
        """Returns the tokens of a name that was saved.

        Raises:
            InvalidRequest: it was not.
        """
        self._check_kv(slot)
        self.restored.append((slot, name))
        kept = self._kv_folder is not None and (self._kv_folder / name).exists()
        if name not in self._saved and not kept:
            raise InvalidRequest(f"no KV state was saved as {name!r}.", name=name)
        return 8

    def _check_kv(self, slot: int) -> None:
        if not self.capabilities.save_restore:
            raise InvalidRequest(f"{self._model_id} cannot save KV state.", slot=slot)
        if self._server is None:
            raise EngineDied(f"{self._model_id} has ended.", log_tail=list(self.script.log_tail))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
        self._connections.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the caller, or this engine, has gone
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; false when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        raw = await reader.readexactly(int(fields.get("content-length", "0")))
        if method == "GET":
            return await _send_json(writer, 200, {"status": "ok"})
        body = json.loads(raw)
        self.requests.append(body)
        if self.script.refuse is not None:
            return await _send_json(writer, *self.script.refuse)
        if target == "/v1/embeddings":
            await self._before_token(1)
            return await _send_json(writer, 200, _embeddings(body["input"]))
        if target == "/apply-template":
            said = "".join(str(message.get("content")) for message in body["messages"])
            return await _send_json(writer, 200, {"prompt": said + _TEMPLATE_END})
        if target == "/completion":
            await self._while_connected(reader, self._go_on(writer, body))
            return False
        if not body.get("stream"):
            return await self._full(writer, body)
        await self._while_connected(reader, self._stream(writer, body))
        return False

    async def _while_connected(self, reader: asyncio.StreamReader, work: Any) -> None:
        """Run `work` until it ends or the caller closes its side."""
        self.active_requests += 1
        working = asyncio.ensure_future(work)
        closed = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({working, closed}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            self.active_requests -= 1
            working.cancel()
            closed.cancel()

    async def _full(self, writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> bool:
        tokens = self._tokens(body)
        for sent in range(len(tokens)):
            await self._before_token(sent)
        finish = "length" if len(tokens) < len(self.script.tokens) else "stop"
        message = {"role": "assistant", "content": "".join(tokens)}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        answer = {"choices": [choice], **_counts(body, tokens)}
        return await _send_json(writer, 200, answer)

    async def _stream(self, writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> None:
        tokens = self._tokens(body)
        writer.write(_STREAM_HEAD)
        await _send_event(writer, {"role": "assistant", "content": None}, None)
        for sent, token in enumerate(tokens):
            await self._before_token(sent)
            counts = _counts(body, tokens[: sent + 1])["timings"]
            more = {"timings": counts} if body.get("timings_per_token") else {}
            await _send_event(writer, {"content": token}, None, **more)
        await self._before_token(len(tokens))
        finish = "length" if len(tokens) < len(self.script.tokens) else "stop"
        await _send_event(writer, {}, finish)
        await _send_chunk(writer, {"choices": [], **_counts(body, tokens)})
        writer.write(_chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()

    async def _go_on(self, writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> None:
        """Answer `/completion` for an interrupted answer: the tokens after its text."""
        said = str(body["prompt"]).partition(_TEMPLATE_END)[2]
        done = next(k for k in range(len(self.script.tokens) + 1) if self._text(k) == said)
        limit = body.get("n_predict", -1)
        rest = self.script.tokens[done:] if limit < 0 else self.script.tokens[done : done + limit]
        writer.write(_STREAM_HEAD)
        for sent, token in enumerate(rest):
            await self._before_token(sent)
            timings = {"prompt_n": 1, "predicted_n": sent + 1}
            await _send_chunk(writer, {"content": token, "stop": False, "timings": timings})
        kind = "eos" if done + len(rest) == len(self.script.tokens) else "limit"
        last = {"content": "", "stop": True, "stop_type": kind, "tokens_predicted": len(rest)}
        await _send_chunk(writer, last)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _text(self, count: int) -> str:
        return "".join(self.script.tokens[:count])

    async def _before_token(self, sent: int) -> None:
        if self.script.die_after is not None and sent >= self.script.die_after:
            self.kill()
            raise ConnectionResetError
        if self.script.token_gate is not None and sent > 0:
            await self.script.token_gate.wait()

    def _tokens(self, body: Mapping[str, Any]) -> list[str]:
        limit = body.get("max_tokens") or len(self.script.tokens)
        return list(self.script.tokens[:limit])


def _words(body: Mapping[str, Any]) -> int:
    return sum(len(str(message.get("content")).split()) for message in body.get("messages", ()))


def _counts(body: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    prompt = _words(body)
    usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens)}
    timings = {"prompt_n": prompt, "cache_n": 0, "prompt_ms": 1.0, "predicted_n": len(tokens)}
    return {"usage": usage, "timings": {**timings, "predicted_ms": 1.0}}


def _embeddings(texts: Sequence[str]) -> dict[str, Any]:
    rows = []
    for index, text in enumerate(texts):
        vector = [0.0] * _VECTOR_LENGTH
        for position, byte in enumerate(text.encode()):
            vector[position % _VECTOR_LENGTH] += byte
        norm = sum(value * value for value in vector) ** 0.5
        rows.append({"index": index, "embedding": [value / norm for value in vector]})
    return {"data": rows, "usage": {"prompt_tokens": len(texts)}}


def _chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _send_chunk(writer: asyncio.StreamWriter, value: Mapping[str, Any]) -> None:
    writer.write(_chunked(b"data: " + json.dumps(value).encode() + b"\n\n"))
    await writer.drain()


async def _send_event(
    writer: asyncio.StreamWriter, delta: Mapping[str, Any], finish: str | None, **more: Any
) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    await _send_chunk(writer, {"choices": [choice], **more})


async def _send_json(writer: asyncio.StreamWriter, status: int, value: Mapping[str, Any]) -> bool:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return True
