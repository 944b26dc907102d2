"""The protocol between client and keeper: one JSON object per line over a Unix socket.

A client sends `{"op": ..., "id": N, ...}`; every op but `end` and `pong` is answered by one line with that
id: `{"id": N, "ok": {...}}` or `{"id": N, "error": {...}}`. In between the keeper may send notices,
`{"notice": ..., ...}`, which are no answers: `alive` while an op waits for its answer, `ping` for a lease
(the client says `pong`), `yield` and `revoked` of a lease, `refused` before a connection is closed. Times
are nanoseconds of the machine's monotonic clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from budget.errors import InternalError, KeeperUnavailable, error_from_wire

VERSION: Final = 3
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

Message = dict[str, Any]

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ascii_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encode(message: Message) -> bytes:
    """One message as a line. Numbers that are not finite, which JSON does not have, become null."""
    try:
        return _encoder.encode(message).encode() + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate, as in a file name that is not UTF-8.
        return _ascii_encoder.encode(message).encode() + b"\n"
    except ValueError:
        return _ascii_encoder.encode(_finite(message)).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def result_of(answer: Message) -> Message:
    """The result that an answer carries.

    Raises:
        KeepwarmError: the error that it carries instead, with the class that it had in the keeper.
    """
    result = answer.get("ok")
    if isinstance(result, dict):
        return result
    if "error" in answer:
        raise error_from_wire(answer["error"])
    raise InternalError(f"an answer without result: {answer!r}")


def keeper_gone() -> KeeperUnavailable:
    """The keeper's end of the connection closed."""
    return KeeperUnavailable(
        "The keeper ended while it was needed.",
        hint="The next call starts a fresh one; `keepwarm keeper log` says why it ended.",
    )
