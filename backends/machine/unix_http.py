"""Small HTTP requests over a Unix socket or the loopback: health, slots, a prompt. No HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from backends.foreign.foreign_json import BadJson, parse_json
from budget.errors import EndpointError

ANSWER_LIMIT_S: Final = 5.0
"""Until an engine has answered a question that costs it nothing."""
LOOPBACK: Final = "127.0.0.1"
_HEAD_BYTES: Final = 4096
_BODY_S: Final = 0.25
"""Until the body of an error has followed its head."""
_MAX_ANSWER_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 1 << 16

Address = Path | int
"""A Unix socket, or a port of the loopback."""


async def control_request(
    socket_path: Path,
    method: str,
    target: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = ANSWER_LIMIT_S,
) -> tuple[int, Any]:
    """One request on a connection of its own; returns the status and the decoded JSON body.

    Raises:
        OSError: nothing listens, or the connection broke (`TimeoutError` when it took too long).
        EndpointError: the answer is not HTTP with a JSON body, or is too long.
    """
    status, payload = await control_answer(socket_path, method, target, body, timeout_s=timeout_s)
    return status, _decoded(status, payload)


async def control_answer(
    socket_path: Path,
    method: str,
    target: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = ANSWER_LIMIT_S,
) -> tuple[int, bytes]:
    """As `control_request`, with the body as it came.

    Raises:
        as `control_request`.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
        try:
            writer.write(_request(method, target, body))
            await writer.drain()
            answer = bytearray()
            while chunk := await reader.read(_CHUNK_BYTES):
                _add(answer, chunk)
            return _parse(answer)
        finally:
            writer.close()


def blocking_request(
    socket_path: Path,
    method: str,
    target: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = ANSWER_LIMIT_S,
) -> tuple[int, Any]:
    """As `control_request`, for programs that measure; `timeout_s` bounds each wait.

    Raises:
        as `control_request`.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        client.connect(str(socket_path))
        client.sendall(_request(method, target, body))
        answer = bytearray()
        while chunk := client.recv(_CHUNK_BYTES):
            _add(answer, chunk)
    status, payload = _parse(answer)
    return status, _decoded(status, payload)


def is_healthy(socket_path: Path) -> bool:
    """Whether a server says on its socket that it is ready."""
    try:
        return blocking_request(socket_path, "GET", "/health")[0] == 200
    except (OSError, EndpointError):
        return False


def _request(method: str, target: str, body: Mapping[str, Any] | None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: keepwarm\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def _add(answer: bytearray, chunk: bytes) -> None:
    answer += chunk
    if len(answer) > _MAX_ANSWER_BYTES:
        raise EndpointError(f"the engine's answer has over {_MAX_ANSWER_BYTES} bytes.")


def _parse(answer: bytearray) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionResetError("the engine closed the connection without an answer")
    return int(words[1]), bytes(body)


def _decoded(status: int, body: bytes) -> Any:
    try:
        return parse_json(body) if body else None
    except BadJson as exc:
        raise EndpointError(
            f"the engine answered with something that is not JSON: {body[:80]!r}.",
            status=status,
        ) from exc


def free_port() -> int:
    """A port of the loopback that is free now; another program can still take it before its use."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


async def listens(address: Address, limit_s: float) -> bool:
    """Whether anything accepts connections there."""
    try:
        async with asyncio.timeout(limit_s):
            _, writer = await _connected(address)
    except OSError:
        return False
    writer.close()
    return True


async def status_of(address: Address, path: str, key: str, limit_s: float) -> int | None:
    """The status with which a path answers; None for no answer of HTTP."""
    answer = await answer_of(address, path, key, limit_s)
    return answer[0] if answer is not None else None


async def answer_of(
    address: Address, path: str, key: str, limit_s: float
) -> tuple[int, bytes] | None:
    """The status with which a path answers, and the begin of the body of one that is no success.

    None for no answer of HTTP.
    """
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n"
        f"Accept: */*\r\nAuthorization: Bearer {key}\r\n\r\n"
    )
    body = b""
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await _connected(address)
            try:
                writer.write(head.encode())
                said = await reader.read(_HEAD_BYTES)
                status = _status_in(said)
                if status is not None and not is_success(status):
                    body = said.partition(b"\r\n\r\n")[2]
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_BODY_S):
                            body = body or await reader.read(_HEAD_BYTES)
            finally:
                writer.close()
    except OSError:
        return None
    return None if status is None else (status, body)


def is_success(status: int | None) -> bool:
    """Whether a status says that all is well."""
    return status is not None and 200 <= status < 300


def _status_in(said: bytes) -> int | None:
    words = said.split(b" ", 2)
    is_http = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1][:3].isdigit()
    return int(words[1][:3]) if is_http else None


async def _connected(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, int):
        return await asyncio.open_connection(LOOPBACK, address)
    return await asyncio.open_unix_connection(str(address))
