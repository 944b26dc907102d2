"""What client and keeper say to each other: one JSON object per line over a Unix socket.

A client sends `{"op": ..., "id": N, ...}`; every op but `end` is answered by one line with that id:
`{"id": N, "ok": {...}}` or `{"id": N, "error": {...}}`. In between the keeper may send notices,
`{"notice": ..., ...}`, which answer nothing. Times are nanoseconds of the machine's monotonic clock.
"""

from __future__ import annotations

import json
from typing import Any, Final

from budget.errors import InternalError, KeeperUnavailable, error_from_wire

VERSION: Final = 1
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

Message = dict[str, Any]

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode(message: Message) -> bytes:
    """One message as a line."""
    return _encoder.encode(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line.

    Raises:
        InternalError: the line is not a JSON object.
    """
    try:
        message = json.loads(line)
    except ValueError as exc:
        raise InternalError(f"not JSON on the keeper's socket: {line[:200]!r}") from exc
    if not isinstance(message, dict):
        raise InternalError(f"not an object on the keeper's socket: {line[:200]!r}")
    return message


def outcome(message: Message) -> Message:
    """The result that an answer carries.

    Raises:
        KeepwarmError: the answer is an error; it is raised as what it was in the keeper.
    """
    if "error" in message:
        raise error_from_wire(message["error"])
    result = message.get("ok")
    if not isinstance(result, dict):
        raise InternalError(f"an answer without result: {message!r}")
    return result


def keeper_gone() -> KeeperUnavailable:
    """The keeper's end of the connection closed."""
    return KeeperUnavailable(
        "The keeper ended while it was needed.",
        hint="The next call starts a fresh one; `keepwarm keeper log` says why it ended.",
    )
