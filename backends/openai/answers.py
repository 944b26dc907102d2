"""Foreign errors as ours: HTTP answers, errors inside streams, broken connections.

The shapes are llama.cpp's (`tools/server/server-common.cpp`, `format_error_response`), vLLM's
(`{"error": {...}}`, `{"error": "text"}`, `{"detail": ...}`) and those of other servers of the same
protocol.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from backends.base import Endpoint
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    EngineTimeout,
    Fact,
    InvalidRequest,
    KeepwarmError,
    PromptTooLong,
    QueueFull,
    UnknownModel,
)

_TOO_LONG = re.compile(
    r"maximum context length|context size|context length|context_length_exceeded"
    r"|too large to process|max_model_len|longer than the maximum",
    re.IGNORECASE,
)
_ENGINE_DEAD = re.compile(r"EngineCore|EngineDead|engine (is|has) (dead|died)", re.IGNORECASE)
_UNAVAILABLE = frozenset({502, 503, 504})


def place(endpoint: Endpoint) -> str:
    """The endpoint in words, without user information that a URL may hold."""
    if endpoint.socket_path is not None:
        return f"the engine of {endpoint.model_id}"
    parts = urlsplit(endpoint.base_url)
    host = parts.netloc.rpartition("@")[2]
    return f"{endpoint.model_id} at {urlunsplit((parts.scheme, host, parts.path, '', ''))}"


def error_from_answer(endpoint: Endpoint, status: int, body: bytes, key: str = "") -> KeepwarmError:
    """The error that an answer with a status other than 200 stands for; the key is masked in it."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    return _mapped(endpoint, status, found, _mask(text, key), key)


def error_in_stream(endpoint: Endpoint, chunk: Mapping[str, Any], key: str = "") -> KeepwarmError:
    """The error that a chunk of a stream with status 200 carries."""
    detail = chunk.get("error")
    code = detail.get("code") if isinstance(detail, Mapping) else None
    status = code if isinstance(code, int) else 500
    return _mapped(endpoint, status, chunk, _mask(str(chunk), key), key)


def _mapped(endpoint: Endpoint, status: int, found: Any, text: str, key: str) -> KeepwarmError:
    detail = found.get("error", found.get("detail")) if isinstance(found, Mapping) else None
    fields: Mapping[str, Any] = detail if isinstance(detail, Mapping) else {}
    said = fields.get("message") or (detail if isinstance(detail, str) else text[:300])
    message = _mask(str(said), key).rstrip(".")
    facts: dict[str, Fact] = {
        "status": status,
        "type": _text(fields.get("type")),
        "param": _text(fields.get("param")),
    }
    lead = f"{place(endpoint)} answered {status}: {message}."
    if _is_too_long(status, message, facts):
        for name in ("n_prompt_tokens", "n_ctx"):
            if isinstance(fields.get(name), int):
                facts[name] = fields[name]
        return PromptTooLong(lead, hint="Shorten the messages or raise the context.", **facts)
    return _by_status(endpoint, status, lead, message, facts)


def _is_too_long(status: int, message: str, facts: Mapping[str, Fact]) -> bool:
    if facts["type"] == "exceed_context_size_error" or facts["param"] == "input_tokens":
        return True
    if facts["param"] == "max_tokens":
        return False
    return status in {400, 413, 500} and bool(_TOO_LONG.search(message))


def _by_status(
    endpoint: Endpoint, status: int, lead: str, message: str, facts: dict[str, Fact]
) -> KeepwarmError:
    if status == 404 and (facts["param"] == "model" or facts["type"] == "NotFoundError"):
        served = f"Check model_id ({endpoint.model_id}) against what the endpoint serves."
        return UnknownModel(lead, hint=served, **facts)
    if status in {401, 403}:
        env = endpoint.api_key_env
        hint = f"Check the key in ${env}." if env else "Set api_key_env for this model."
        return EndpointError(lead, hint=hint, **facts)
    if status in {400, 422, 501} or facts["type"] == "not_supported_error":
        return InvalidRequest(lead, hint="", **facts)
    if status == 429 or (status == 503 and endpoint.backend == "vllm"):
        return QueueFull(lead, hint="Try again later.", **facts)
    if status in _UNAVAILABLE:
        return EndpointUnavailable(lead, hint="Try again later.", **facts)
    if status >= 500 and _ENGINE_DEAD.search(message):
        return EngineDied(lead, hint="The endpoint has to be started again.", **facts)
    return EndpointError(lead, hint="", **facts)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _mask(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text


def refused(endpoint: Endpoint, reason: str) -> KeepwarmError:
    """No connection: a local engine that is gone, or a remote endpoint that does not answer."""
    if endpoint.socket_path is not None:
        return _died(endpoint, reason)
    return EndpointUnavailable(
        f"{place(endpoint)} does not answer: {reason}.",
        hint="Check the URL and that the server runs.",
        reason=reason,
    )


def broken(endpoint: Endpoint, reason: str) -> KeepwarmError:
    """The connection ended before the answer did."""
    if endpoint.socket_path is not None:
        return _died(endpoint, reason)
    return EndpointUnavailable(
        f"{place(endpoint)} broke off its answer: {reason}.",
        hint="The answer so far is incomplete; ask again.",
        reason=reason,
    )


def _died(endpoint: Endpoint, reason: str) -> EngineDied:
    return EngineDied(
        f"{place(endpoint)} ended while it was needed: {reason}.",
        hint="The next call starts it again.",
        reason=reason,
        log_tail=[],
    )


def too_slow(endpoint: Endpoint, what: str, limit_s: float | None) -> EngineTimeout:
    """A time-out of one of the phases of a request."""
    shown = "its limit" if limit_s is None else f"{limit_s:g} s"
    return EngineTimeout(
        f"{place(endpoint)}: {what} took over {shown}.", phase=what, limit_s=limit_s
    )
