"""The OpenAI chat protocol without I/O: requests as bytes, answers as values.

Pure: nothing here opens a connection, reads a clock or the environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.base import Endpoint
from backends.openai.options import checked_messages, wire_options
from budget.errors import EndpointError, InvalidRequest

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Messages and options of one call, the same for every endpoint."""

    messages: Sequence[Message] | str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint counted them; `cached_tokens` of the prompt were not evaluated again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """What llama.cpp measured: tokens evaluated, tokens reused (`cache_n`), milliseconds."""

    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of a streamed answer; everything that a piece does not carry is empty."""

    content: str = ""
    reasoning: str = ""
    role: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    logprobs: tuple[Mapping[str, Any], ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    content: str
    finish_reason: str | None
    role: str = "assistant"
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    usage: Usage = Usage()
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per text, in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage = Usage()


def chat_body(endpoint: Endpoint, request: ChatRequest, *, stream: bool) -> bytes:
    """The body of a chat request for this endpoint.

    Raises:
        InvalidRequest: a message or an option is not allowed, or the endpoint cannot honour it.
    """
    if not endpoint.capabilities.chat:
        raise InvalidRequest(
            f"{endpoint.model_id} does not chat; it embeds.", hint="Call embed() instead."
        )
    body: dict[str, Any] = {
        "model": endpoint.model_id,
        "messages": checked_messages(request.messages),
    }
    if request.options:
        body.update(wire_options(endpoint, request.options))
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return _encode(body)


def embed_body(endpoint: Endpoint, texts: Sequence[str]) -> bytes:
    """The body of an embeddings request.

    Raises:
        InvalidRequest: no texts, one that is empty or not a string, or an engine that cannot embed.
    """
    if not endpoint.capabilities.embeddings:
        raise InvalidRequest(
            f"{endpoint.model_id} does not embed.", hint='Configure it with role = "embedder".'
        )
    bad = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text]
    if isinstance(texts, str) or not texts or bad:
        raise InvalidRequest(
            f"embed() takes a non-empty list of non-empty strings (wrong at: {bad}).",
            positions=list(bad),
        )
    return _encode({"model": endpoint.model_id, "input": list(texts), "encoding_format": "float"})


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as exc:
        raise InvalidRequest(f"the request cannot be written as JSON: {exc}.") from exc


def decode(raw: bytes) -> dict[str, Any]:
    """A JSON object of an answer.

    Raises:
        EndpointError: it is not one.
    """
    try:
        value = json.loads(raw)
    except ValueError as exc:
        raise EndpointError(
            f"the endpoint sent something that is not JSON: {raw[:120]!r}."
        ) from exc
    if not isinstance(value, dict):
        raise EndpointError(f"the endpoint sent {raw[:120]!r} where an object is due.")
    return value


def parse_completion(answer: Mapping[str, Any]) -> Completion:
    """A full (not streamed) answer.

    Raises:
        EndpointError: it has not the protocol's shape.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        return Completion(
            content=message.get("content") or "",
            finish_reason=choice.get("finish_reason"),
            role=message.get("role") or "assistant",
            reasoning=_reasoning(message),
            tool_calls=tuple(message.get("tool_calls") or ()),
            logprobs=_logprobs(choice),
            usage=_usage(answer) or Usage(),
            timings=_timings(answer),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as exc:
        raise _bad_shape(answer) from exc


def parse_chunk(chunk: Mapping[str, Any]) -> Delta:
    """One chunk of a stream.

    Raises:
        EndpointError: it has not the protocol's shape.
    """
    try:
        choices = chunk.get("choices") or ()
        usage = _usage(chunk) if "usage" in chunk else None
        timings = _timings(chunk) if "timings" in chunk else None
        if not choices:
            return Delta(usage=usage, timings=timings)
        choice = choices[0]
        delta = choice.get("delta") or {}
        return Delta(
            content=delta.get("content") or "",
            reasoning=_reasoning(delta),
            role=delta.get("role") or "",
            tool_calls=tuple(delta.get("tool_calls") or ()),
            finish_reason=choice.get("finish_reason"),
            logprobs=_logprobs(choice),
            usage=usage,
            timings=timings,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise _bad_shape(chunk) from exc


def parse_embeddings(answer: Mapping[str, Any], count: int) -> Embeddings:
    """The vectors of an embeddings answer, by their `index`.

    Raises:
        EndpointError: it has not the protocol's shape, or not one vector per text.
    """
    try:
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        vectors = tuple(tuple(map(float, row["embedding"])) for row in rows)
        usage = _usage(answer) or Usage()
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise _bad_shape(answer) from exc
    if len(vectors) != count:
        raise EndpointError(f"the endpoint sent {len(vectors)} vectors for {count} texts.")
    return Embeddings(vectors, usage)


def assemble(deltas: Iterable[Delta]) -> Completion:
    """The whole answer that a stream's pieces make."""
    content: list[str] = []
    reasoning: list[str] = []
    logprobs: list[Mapping[str, Any]] = []
    calls: dict[int, dict[str, Any]] = {}
    last = Completion(content="", finish_reason=None)
    role, finish, usage, timings = last.role, last.finish_reason, last.usage, last.timings
    for delta in deltas:
        content.append(delta.content)
        reasoning.append(delta.reasoning)
        logprobs.extend(delta.logprobs)
        for piece in delta.tool_calls:
            _merge_call(calls, piece)
        role = delta.role or role
        finish = delta.finish_reason or finish
        usage = delta.usage or usage
        timings = delta.timings or timings
    return Completion(
        content="".join(content),
        finish_reason=finish,
        role=role,
        reasoning="".join(reasoning),
        tool_calls=tuple(calls[index] for index in sorted(calls)),
        logprobs=tuple(logprobs),
        usage=usage,
        timings=timings,
    )


def _merge_call(calls: dict[int, dict[str, Any]], piece: Mapping[str, Any]) -> None:
    call = calls.setdefault(int(piece.get("index", len(calls))), {"type": "function"})
    call.update({key: piece[key] for key in ("id", "type") if piece.get(key)})
    function = call.setdefault("function", {"name": "", "arguments": ""})
    for key, text in (piece.get("function") or {}).items():
        function[key] = function.get(key, "") + (text or "")


def _reasoning(message: Mapping[str, Any]) -> str:
    return message.get("reasoning_content") or message.get("reasoning") or ""


def _logprobs(choice: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    found = choice.get("logprobs")
    return tuple(found.get("content") or ()) if found else ()


def _usage(answer: Mapping[str, Any]) -> Usage | None:
    found = answer.get("usage")
    if not found:
        return None
    details = found.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=int(found.get("prompt_tokens") or 0),
        completion_tokens=int(found.get("completion_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def _timings(answer: Mapping[str, Any]) -> Timings | None:
    found = answer.get("timings")
    if not found:
        return None
    return Timings(
        prompt_n=int(found.get("prompt_n", 0)),
        cache_n=int(found.get("cache_n", 0)),
        prompt_ms=float(found.get("prompt_ms", 0.0)),
        predicted_n=int(found.get("predicted_n", 0)),
        predicted_ms=float(found.get("predicted_ms", 0.0)),
    )


def _bad_shape(answer: Mapping[str, Any]) -> EndpointError:
    return EndpointError(
        f"the endpoint's answer has not the shape of the OpenAI protocol: {str(answer)[:160]}."
    )
