"""Foreign errors as ours: HTTP answers, errors inside streams, broken connections.

The shapes are llama.cpp's (`tools/server/server-common.cpp`, `format_error_response`), vLLM's
(`{"error": {...}}`, `{"error": "text"}`, `{"detail": ...}`) and those of other servers of the same
protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

from backends.base import Endpoint
from backends.foreign.foreign_json import BadJson, parse_json
from backends.openai.answers.fields import COUNT, figures
from backends.openai.masking import NO_SECRETS, Secrets
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    Fact,
    InvalidRequest,
    KeepwarmError,
    OutOfMemory,
    PromptTooLong,
    QueueFull,
    UnknownModel,
)

_TOO_LONG = re.compile(
    r"maximum context length|context size|context length|context_length_exceeded"
    r"|too large to process|max_model_len|longer than the maximum",
    re.IGNORECASE,
)
_MAY_HAVE = re.compile(r"maximum context length (?:is|of) (\d{1,9}) tokens")
_HAS = re.compile(
    r"(?:contains|resulted in|has)(?: at least)? (\d{1,9})(?: input)? tokens|\((\d{1,9}) in "
)
_HAS_CHARACTERS = re.compile(
    r"contains (\d{1,12}) characters \(more than (\d{1,12}) characters, .{0,40} for (\d{1,9}) "
)
"""How vLLM and OpenAI write how long a prompt may be, and how long this one is (or is at least)."""
_ENGINE_DEAD = re.compile(r"EngineCore|EngineDead|engine (is|has) (dead|died)", re.IGNORECASE)
_NO_MEDIA = re.compile(r"\b(image|audio|video) input is not supported", re.IGNORECASE)
_UNAVAILABLE = frozenset({502, 503, 504, 529})
_UNPARSED = re.compile(r"does not match the expected .{0,40}format", re.IGNORECASE)
"""llama-server generated an answer and could not take it apart by its template and the request's shape."""
_QUOTED = 120
_ERROR_FIELDS = ("error", "errors", "detail", "message")
"""The fields that may hold the error, in a body that is no answer."""
_EMBEDDINGS = "/v1/embeddings"
_NOT_FOUND = frozenset({404, 405, 410})
_LONGEST_WAIT_S = 7 * 86400
_OTHER_PROTOCOLS = (
    (
        re.compile(rb"\s*<(!doctype html|html|head|body)\b", re.IGNORECASE),
        "a web page",
        "Check the url: it leads to a site and not to its API.",
    ),
    (
        re.compile(rb"\s*(data|event|id):"),
        "a stream of events",
        "The endpoint streams though it was asked not to; call stream() for it.",
    ),
    (
        re.compile(rb'\s*\{[^\n]*"done": ?(true|false)[^\n]*\}\s*(\n|$)'),
        "an answer of Ollama's own API",
        'Its OpenAI API is at /v1: write url = "http://HOST:11434/v1".',
    ),
)
"""How answers of another kind begin, what they are, and what to do."""
_ANSWERS = frozenset({"choices", "data", "content", "prompt", "usage", "timings"}) | {
    *("results", "tokens", "text")
}
_STATUS = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": 503,
    "unavailable_error": 503,
}
"""Words of servers for a status."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came with an answer that is an error: the address asked, and what its headers say."""

    asked: str = ""
    location: str = ""
    retry_after_s: float | None = None


def seconds_to_wait(said: str, now_s: float) -> float | None:
    """What a `Retry-After` header says, in seconds from now or as a date; None where it says nothing."""
    try:
        found = float(said)
    except ValueError:
        try:
            found = parsedate_to_datetime(said).timestamp() - now_s
        except ValueError:
            return None
    return max(0.0, found) if found < _LONGEST_WAIT_S else None


def error_from_answer(
    endpoint: Endpoint,
    status: int,
    body: bytes,
    secrets: Secrets = NO_SECRETS,
    heard: Heard = Heard(),
) -> KeepwarmError:
    """The error for an answer with a status other than 200."""
    try:
        found: Any = parse_json(body)
    except BadJson:
        found = None
    error = _mapped(endpoint, status, found, body, secrets)
    if status == 404 and endpoint.backend == "vllm" and heard.asked.endswith(_EMBEDDINGS):
        error = _generates(endpoint, error)
    if not endpoint.is_ours:
        _add_heard(error, status, heard)
    return error


def _generates(endpoint: Endpoint, error: KeepwarmError) -> KeepwarmError:
    """The error of vectors from a vLLM server that generates: it has no route for them."""
    if type(error) is not EndpointError:
        return error
    return InvalidRequest(
        f"{endpoint.place} does not embed: the server has no {_EMBEDDINGS} (it answered 404).",
        hint="Serve an embedding model there (vLLM's --runner pooling), or check the url.",
        **error.facts,
    )


def _add_heard(error: KeepwarmError, status: int, heard: Heard) -> None:
    if status in _NOT_FOUND and heard.asked:
        error.message += f" Asked was {heard.asked}."
        error.facts["url"] = heard.asked
    if 300 <= status < 400 and heard.location:
        target = urljoin(heard.asked, heard.location)
        error.message += f" It sends requests on to {target}, which keepwarm does not follow."
        error.hint = "Write that address as the model's url."
        error.facts["location"] = heard.location
    if heard.retry_after_s is not None and isinstance(error, QueueFull | EndpointUnavailable):
        error.facts["retry_after_s"] = heard.retry_after_s
        error.hint = f"Try again in {heard.retry_after_s:.0f} s."


def found_error(answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The body of the error that an answer of status 200, or a chunk of one, holds; None without one.

    Some routers put it into the first choice. An empty `error` beside an answer does not count, because
    some servers always send the field.
    """
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, Mapping) and (inner := first.get("error")):
        return {"error": inner}
    if answer.get("error") or answer.get("object") == "error":
        return answer
    if answer.keys().isdisjoint(_ANSWERS):
        return answer if any(answer.get(name) is not None for name in _ERROR_FIELDS) else None
    return None


def error_in_answer(
    endpoint: Endpoint, found: Mapping[str, Any], secrets: Secrets = NO_SECRETS
) -> KeepwarmError:
    """The error that `found_error` found."""
    return _mapped(endpoint, _status_of(_fields(found)), found, str(found), secrets)


def unreadable(
    endpoint: Endpoint, problem: EndpointError, body: bytes, secrets: Secrets
) -> EndpointError:
    """The error for an answer outside the protocol, with its first words."""
    if not body.strip():
        return EndpointError(
            f"{endpoint.place}: it answered with nothing.",
            hint="Look at the log of the endpoint, or of a proxy before it.",
        )
    quoted = secrets.quote(body, _QUOTED)
    what, hint = "begins", problem.hint
    for pattern, is_what, advice in _OTHER_PROTOCOLS:
        if pattern.match(body):
            what, hint = f"is {is_what} that begins", advice
            break
    return EndpointError(f"{endpoint.place}: {problem.message} It {what}: {quoted!r}.", hint=hint)


def _fields(found: Any) -> Mapping[str, Any]:
    """The object that describes an error."""
    if not isinstance(found, Mapping):
        return {}
    detail = _detail(found)
    if isinstance(detail, Mapping):
        # A named event of an error may carry a whole error.
        return _fields(detail) if "error" in detail else detail
    return found if detail is None else {}


def _detail(found: Mapping[str, Any]) -> Any:
    """The value that describes the error in its body (an object, a text, a list), or None for the body."""
    for name in _ERROR_FIELDS[:-1]:
        detail = found.get(name)
        if detail is not None:
            first = detail[0] if isinstance(detail, list) and len(detail) == 1 else detail
            return first if isinstance(first, Mapping) and name == "errors" else detail
    return None


def _status_of(fields: Mapping[str, Any]) -> int:
    """The status of an error inside an answer of status 200; 500 where it names none."""
    for name in ("code", "status", "type"):
        value = fields.get(name)
        if isinstance(value, str):
            value = int(value) if value.isascii() and value.isdecimal() else _STATUS.get(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return 500


def _mapped(
    endpoint: Endpoint, status: int, found: Any, body: bytes | str, secrets: Secrets
) -> KeepwarmError:
    fields = _fields(found)
    detail = _detail(found) if isinstance(found, Mapping) else None
    said = fields.get("message") or (detail if isinstance(detail, str) else body)
    quoted = said if isinstance(said, str | bytes) else str(said)
    message = secrets.quote(quoted).rstrip(".")
    facts: dict[str, Fact] = {"status": status}
    for name in ("type", "param"):
        value = fields.get(name)
        facts[name] = secrets.quote(value, _QUOTED) if isinstance(value, str) else None
    lead = f"{endpoint.place} answered {status}{f': {message}' if message else ''}."
    if endpoint.is_ours and _refused_bytes(quoted):
        return OutOfMemory(
            lead,
            hint="It may take what is booked for it and [keeper] engine_margin. Look at its chat template"
            " and at what the request asks for.",
            **facts,
        )
    if fields.get("code") == "context_length_exceeded" or _is_too_long(status, message, facts):
        counts = {"n_prompt_tokens": COUNT, "n_ctx": COUNT}
        facts |= _counts_in(message)
        facts |= figures(fields, {name: counts[name] for name in counts if name in fields})
        return PromptTooLong(lead, hint=_shorter(endpoint, message), **facts)
    return _by_status(endpoint, status, lead, message, facts)


def _counts_in(message: str) -> dict[str, Fact]:
    """The tokens that a prompt may have, and has (or has at least), where an error has them in words."""
    may = _MAY_HAVE.search(message)
    if may is None:
        return {}
    counts: dict[str, Fact] = {"n_ctx": int(may[1])}
    if has := _HAS.search(message):
        counts["n_prompt_tokens"] = int(has[1] or has[2])
    elif text := _HAS_CHARACTERS.search(message):
        # The text was not read into tokens: so many characters are at least so many of the longest tokens.
        characters, most, tokens = map(int, text.groups())
        counts["n_prompt_tokens"] = -(-characters * tokens // max(most, 1))
    return counts


def _shorter(endpoint: Endpoint, message: str) -> str:
    """What helps against a prompt that is too long: the key that bounds it, where it is one of ours."""
    if not endpoint.is_ours:
        return "Shorten the input, or raise the context where the endpoint is run."
    if "too large to process" in message:
        return "Split the text, or raise n_ubatch and n_batch of the model to its tokens."
    return "Shorten the input, or raise context of the model: a request can use context / slots."


def _refused_bytes(said: str | bytes) -> bool:
    """Whether an engine of ours was refused memory while it worked on the request."""
    return "std::bad_alloc" in (said if isinstance(said, str) else said.decode("utf-8", "replace"))


def _is_too_long(status: int, message: str, facts: Mapping[str, Fact]) -> bool:
    if facts["type"] == "exceed_context_size_error" or facts["param"] == "input_tokens":
        return True
    if facts["param"] == "max_tokens":
        return False
    return status in {400, 413, 500} and bool(_TOO_LONG.search(message))


def _by_status(
    endpoint: Endpoint, status: int, lead: str, message: str, facts: dict[str, Fact]
) -> KeepwarmError:
    if status == 404 and endpoint.backend == "ollama":
        pull = f"`ollama pull {endpoint.model_id}` there, or check model_id."
        return UnknownModel(lead, hint=pull, **facts)
    if status == 404 and (facts["param"] == "model" or facts["type"] == "NotFoundError"):
        served = f"Check model_id ({endpoint.model_id}) against what the endpoint serves."
        return UnknownModel(lead, hint=served, **facts)
    if status in {401, 403}:
        env = endpoint.api_key_env
        hint = f"Check the key in ${env}." if env else "Set api_key_env for this model."
        return EndpointError(lead, hint=hint, **facts)
    if _NO_MEDIA.search(message):
        hint = "The model reads text only; give it a projector (mmproj), or leave images and sound out."
        return InvalidRequest(lead, hint=hint, **facts)
    if status in {400, 422, 501} or facts["type"] == "not_supported_error":
        return InvalidRequest(lead, hint="", **facts)
    if status == 413:
        hint = "Send less, or raise the bound of the endpoint, or of a proxy before it."
        return InvalidRequest(lead, hint=hint, **facts)
    if status == 429 or (status == 503 and endpoint.backend == "vllm"):
        return QueueFull(lead, hint="Try again later.", **facts)
    if status in _UNAVAILABLE:
        return EndpointUnavailable(lead, hint="Try again later.", **facts)
    if status >= 500 and _ENGINE_DEAD.search(message):
        return EngineDied(lead, hint="The endpoint has to be started again.", **facts)
    if _UNPARSED.search(message):
        hint = "The model's answer is in the fact `text`; ask again, or ask for a simpler shape."
        return EndpointError(lead, hint=hint, unparsed=True, **facts)
    return EndpointError(lead, hint="", **facts)


def refused(endpoint: Endpoint, reason: str) -> KeepwarmError:
    """The error for a refused connection: a local engine is gone, or a remote endpoint does not answer."""
    if endpoint.is_ours:
        return _died(endpoint, reason)
    return EndpointUnavailable(
        f"{endpoint.place} does not answer: {reason}.",
        hint="Check the URL and that the server runs.",
        reason=reason,
    )


def broken(endpoint: Endpoint, reason: str, text: str = "") -> KeepwarmError:
    """The error for a connection that broke during an answer; `text` is the part that had come."""
    if endpoint.is_ours:
        return _died(endpoint, reason, text)
    return EndpointUnavailable(
        f"{endpoint.place} broke off its answer: {reason}.",
        hint="The answer so far is incomplete; ask again.",
        reason=reason,
        text=text,
    )


def _died(endpoint: Endpoint, reason: str, text: str = "") -> EngineDied:
    return EngineDied(
        f"{endpoint.place} ended while it was needed: {reason}.",
        hint="The next call starts it again.",
        reason=reason,
        text=text,
        log_tail=[],
    )
