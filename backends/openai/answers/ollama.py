"""Ollama's own API: requests in its words, and its answers in those of OpenAI's.

Shapes are those of Ollama's public documentation (`docs/api.md`, v0.5). It was tested against a server
that is written after that page, not against Ollama itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backends.base import Endpoint
from backends.foreign.foreign_json import BadJson, parse_json
from backends.foreign.json_shapes import table, text
from backends.openai.answers.reading import StreamReader
from backends.openai.answers.sse import SseParser
from backends.openai.masking import Secrets
from budget.errors import EndpointError, InvalidRequest

CHAT_PATH: Final = "/api/chat"
PS_PATH: Final = "/api/ps"
_PATHS: Final = {"/v1/chat/completions": CHAT_PATH, "/v1/embeddings": "/api/embed"}
_OPTIONS: Final = {
    "max_tokens": "num_predict",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty")},
}
_REFUSED: Final = ("logprobs", "top_logprobs")
_NS_PER_MS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that Ollama has in memory: its name there, its bytes, and those of them on GPUs."""

    name: str
    n_bytes: int
    gpu_bytes: int
    expires_at: str


def asked(endpoint: Endpoint, path: str, body: bytes) -> tuple[str, bytes]:
    """The path and the body of a request that was made for OpenAI's API.

    Raises:
        InvalidRequest: Ollama cannot honour it.
    """
    if path not in _PATHS:
        return path, body
    fields: dict[str, Any] = json.loads(body)
    if path.endswith("/embeddings"):
        # It would cut a text that is too long without a word.
        made: dict[str, Any] = {"input": fields["input"], "truncate": False}
    else:
        made = _chat(endpoint, fields)
    made = {"model": endpoint.model_id, **made, **_kept(endpoint.keep_alive_s)}
    return _PATHS[path], _encoded(made)


def residency_body(endpoint: Endpoint, keep_alive_s: float | None) -> bytes:
    """The body by which a model is loaded for so long, or unloaded (0)."""
    made: dict[str, Any] = {"model": endpoint.model_id, "messages": [], "stream": False}
    return _encoded(made | _kept(keep_alive_s))


def _encoded(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _kept(keep_alive_s: float | None) -> dict[str, Any]:
    """The field `keep_alive`: seconds, or below 0 for no end."""
    return {} if keep_alive_s is None else {"keep_alive": keep_alive_s}


def _chat(endpoint: Endpoint, fields: dict[str, Any]) -> dict[str, Any]:
    fields.pop("model", None)
    fields.pop("stream_options", None)
    for name in _REFUSED:
        if fields.pop(name, None):
            raise _cannot(endpoint, name, "it says no probabilities")
    choice = fields.pop("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise _cannot(endpoint, "tool_choice", 'it knows "auto" alone')
    made: dict[str, Any] = {
        "messages": [_message(endpoint, message) for message in fields.pop("messages")],
        "stream": fields.pop("stream", False),
    }
    if shape := _shape(fields.pop("response_format", {})):
        made["format"] = shape
    tools = fields.pop("tools", None)
    if tools and choice == "auto":
        made["tools"] = tools
    options = {_OPTIONS[name]: fields.pop(name) for name in list(fields) if name in _OPTIONS}
    # What is left was given as `extra`.
    options |= fields.pop("options", {})
    return made | ({"options": options} if options else {}) | fields


def _shape(wanted: Mapping[str, Any]) -> Any:
    """The field `format`: a schema, or any JSON; None for plain text."""
    if wanted.get("type") == "json_schema":
        return wanted["json_schema"].get("schema", {})
    return "json" if wanted.get("type") == "json_object" else None


def _message(endpoint: Endpoint, message: Mapping[str, Any]) -> dict[str, Any]:
    content, images = message.get("content"), []
    if isinstance(content, list):
        images = [_image(endpoint, part) for part in content if part["type"] != "text"]
        content = "".join(part["text"] for part in content if part["type"] == "text")
    role = "system" if message["role"] == "developer" else message["role"]
    made: dict[str, Any] = {"role": role, "content": content or ""}
    if images:
        made["images"] = images
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [{"function": _called(call["function"])} for call in calls]
    return made


def _called(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = parse_json(function.get("arguments") or "{}")
    except BadJson:
        arguments = {}
    return {"name": function["name"], "arguments": arguments}


def _image(endpoint: Endpoint, part: Mapping[str, Any]) -> str:
    """The base64 text of an image; Ollama fetches none."""
    url = part.get("image_url")
    found = url.get("url") if isinstance(url, Mapping) else url
    if isinstance(found, str) and found.startswith("data:image/") and ";base64," in found:
        return found.partition(";base64,")[2]
    raise _cannot(endpoint, "content", "it takes texts, and images as data: URLs")


def _cannot(endpoint: Endpoint, name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{endpoint.model_id} runs at Ollama, which cannot honour {name}: {why}.",
        hint='Leave it out, or use Ollama\'s /v1 with backend = "openai".',
        option=name,
    )


# Answers


def answered(raw: bytes) -> bytes:
    """A whole answer, as OpenAI's API would have it; what is none of Ollama's stays as it is."""
    try:
        found = parse_json(raw)
    except BadJson:
        return raw
    if not isinstance(found, Mapping) or found.get("error"):
        return raw
    if "embeddings" in found:
        rows = found["embeddings"]
        vectors = rows if isinstance(rows, list) else []
        data = [{"index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        return _encoded({"data": data, "usage": {"prompt_tokens": found.get("prompt_eval_count")}})
    if "message" not in found:
        return raw
    if found.get("done") is False:
        return _encoded({"error": "the answer broke off: it says that it is not done"})
    return _encoded(_said(found, "message"))


def _said(found: Mapping[str, Any], of: str) -> dict[str, Any]:
    message = found.get("message")
    said: dict[str, Any] = {"content": "", **(message if isinstance(message, Mapping) else {})}
    calls = said.pop("tool_calls", None)
    if thought := said.pop("thinking", None):
        said["reasoning_content"] = thought
    if isinstance(calls, list) and calls:
        said["tool_calls"] = [_call(at, call) for at, call in enumerate(calls)]
    made: dict[str, Any] = {"choices": [{"index": 0, of: said, "finish_reason": None}]}
    if found.get("done"):
        made["choices"][0]["finish_reason"] = found.get("done_reason") or "stop"
        made |= _figures(found)
    return made


def _call(at: int, call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    identity = {"index": at, "id": f"call_{at}", "type": "function"}
    return {
        **identity,
        "function": {k: function[k] for k in ("name", "arguments") if k in function},
    }


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    prompt_n, answer_n = found.get("prompt_eval_count"), found.get("eval_count")
    timings = {
        "prompt_n": prompt_n,
        "predicted_n": answer_n,
        "prompt_ms": _ms(found.get("prompt_eval_duration")),
        "predicted_ms": _ms(found.get("eval_duration")),
    }
    usage = {"prompt_tokens": prompt_n, "completion_tokens": answer_n}
    return {
        "usage": {name: n for name, n in usage.items() if n is not None},
        "timings": {name: n for name, n in timings.items() if n is not None},
    }


def _ms(duration_ns: Any) -> float | None:
    is_number = isinstance(duration_ns, int | float) and not isinstance(duration_ns, bool)
    return duration_ns / _NS_PER_MS if is_number else None


class _Lines(SseParser):
    """A stream of JSON objects, one a line, as the events that OpenAI's API would send."""

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line.strip():
            return
        try:
            found = parse_json(line)
        except BadJson:
            super()._take(line, events)
            return
        if not isinstance(found, Mapping) or "error" in found:
            events.append(line)
            return
        events.append(_encoded(_said(found, "delta")))
        if found.get("done"):
            events.append(b"[DONE]")


class OllamaReader(StreamReader):
    """Bytes of a stream of Ollama's in, deltas out."""

    def __init__(self, endpoint: Endpoint, secrets: Secrets, content_type: str = "") -> None:
        super().__init__(endpoint, secrets, content_type)
        self._parser = _Lines()


def residents(raw: bytes) -> Sequence[Resident]:
    """The models in memory, from `/api/ps`.

    Raises:
        EndpointError: it has another shape.
    """
    try:
        rows = table(parse_json(raw))["models"] or []
        return [
            Resident(
                text(row["name"]), _count(row["size"]), _count(row.get("size_vram", 0)), _end(row)
            )
            for row in map(table, rows)
        ]
    except (BadJson, ValueError, TypeError, KeyError) as error:
        raise EndpointError(
            f"Ollama's list of running models has another shape: {error}."
        ) from None


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"{value!r} is no number of bytes")


def _end(row: Mapping[str, Any]) -> str:
    found = row.get("expires_at", "")
    return found if isinstance(found, str) else ""
