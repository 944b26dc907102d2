"""The options of a chat call: which there are, what each may be, and what it is on the wire."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.base import Endpoint
from budget.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")
_RESERVED = frozenset({"model", "messages", "stream", "stream_options", "n"})
_LLAMA_CPP = "llama.cpp"

Check = Callable[[Any], bool]


def _integer(low: int, high: float = math.inf) -> Check:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _number(low: float, high: float = math.inf) -> Check:
    def check(value: Any) -> bool:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return real and math.isfinite(value) and low <= value <= high

    return check


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(t, str) and t for t in texts)


def _is_tools(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(t, Mapping) for t in value)


def _is_response_format(value: Any) -> bool:
    kinds = {"text", "json_object", "json_schema"}
    return isinstance(value, Mapping) and value.get("type") in kinds


OPTIONS: Mapping[str, tuple[Check, str]] = {
    "max_tokens": (_integer(1), "an integer >= 1"),
    "temperature": (_number(0.0), "a number >= 0"),
    "top_p": (_number(0.0, 1.0), "a number from 0 to 1"),
    "top_k": (_integer(-1), "an integer >= -1"),
    "min_p": (_number(0.0, 1.0), "a number from 0 to 1"),
    "presence_penalty": (_number(-2.0, 2.0), "a number from -2 to 2"),
    "frequency_penalty": (_number(-2.0, 2.0), "a number from -2 to 2"),
    "seed": (_integer(0, 2**32 - 1), "an integer from 0 to 4294967295"),
    "stop": (_is_stop, "a non-empty string or a list of them"),
    "response_format": (_is_response_format, 'an object with type "text|json_object|json_schema"'),
    "json_schema": (lambda v: isinstance(v, Mapping), "a JSON schema as an object"),
    "grammar": (lambda v: isinstance(v, str) and bool(v), "a GBNF grammar as a string"),
    "tools": (_is_tools, "a list of tool objects"),
    "tool_choice": (lambda v: isinstance(v, str | Mapping), "a string or an object"),
    "logprobs": (lambda v: isinstance(v, bool), "true or false"),
    "top_logprobs": (_integer(0, 20), "an integer from 0 to 20"),
    "slot": (_integer(0), "an integer >= 0 (llama.cpp only)"),
    "cache_prompt": (lambda v: isinstance(v, bool), "true or false (llama.cpp only)"),
    "extra": (lambda v: isinstance(v, Mapping), "an object, passed to the endpoint as it is"),
}
"""Option name -> (check, what it may be)."""

_ONLY_LLAMA_CPP = {"slot", "cache_prompt"}
_WRITTEN_OTHERWISE = {"json_schema", "slot", "stop", "extra"}
_NEEDS = {
    "grammar": "grammar",
    "json_schema": "json_schema",
    "tools": "tools",
    "tool_choice": "tools",
}


def wire_options(endpoint: Endpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as fields of the request's body; those that are None are left out.

    Raises:
        InvalidRequest: an unknown option, a value that is not allowed, or one that this endpoint
            cannot honour. Facts: `option`, `allowed`.
    """
    body: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        _check(endpoint, name, value)
        if name in _WRITTEN_OTHERWISE:
            body.update(_field(name, value))
        else:
            body[name] = value
    return body


def _check(endpoint: Endpoint, name: str, value: Any) -> None:
    known = OPTIONS.get(name)
    if known is None:
        raise InvalidRequest(
            f"unknown option {name!r}.",
            hint=f"Allowed are: {', '.join(OPTIONS)}.",
            option=name,
            allowed=list(OPTIONS),
        )
    check, allowed = known
    if not check(value):
        raise InvalidRequest(
            f"option {name} is {value!r:.80}; it takes {allowed}.", option=name, allowed=allowed
        )
    needs = _NEEDS.get(name)
    if name == "response_format" and value["type"] != "text":
        needs = "json_schema"
    lacks = needs is not None and not getattr(endpoint.capabilities, needs)
    if lacks or (name in _ONLY_LLAMA_CPP and endpoint.backend != _LLAMA_CPP):
        raise InvalidRequest(
            f"{endpoint.model_id} ({endpoint.backend}) cannot honour the option {name}.",
            hint="Leave it out, or send the request to a model that can.",
            option=name,
            backend=endpoint.backend,
        )


def _field(name: str, value: Any) -> Mapping[str, Any]:
    if name == "json_schema":
        schema = {"name": "answer", "schema": dict(value), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if name == "slot":
        return {"id_slot": value}
    if name == "stop":
        return {"stop": [value] if isinstance(value, str) else list(value)}
    reserved = sorted(_RESERVED & value.keys())
    if reserved:
        raise InvalidRequest(
            f"extra holds {', '.join(map(str, reserved))}, which keepwarm sets itself.",
            option="extra",
        )
    return dict(value)


def checked_messages(messages: Sequence[Mapping[str, Any]] | str) -> list[Mapping[str, Any]]:
    """The messages as a list; a plain string is one user message.

    Raises:
        InvalidRequest: empty, or one without an allowed role or content. Facts: `position`.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    found = list(messages) if isinstance(messages, list | tuple) else []
    if not found:
        raise InvalidRequest(
            "messages is not a non-empty list.",
            hint='Give [{"role": "user", "content": "..."}].',
        )
    for position, message in enumerate(found):
        problem = _message_problem(message)
        if problem:
            raise InvalidRequest(f"messages[{position}]: {problem}.", position=position)
    return found


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"{type(message).__name__} instead of an object with role and content"
    if message.get("role") not in ROLES:
        return f"role {message.get('role')!r}; allowed are {', '.join(ROLES)}"
    content = message.get("content")
    if isinstance(content, str | list) or (content is None and message.get("tool_calls")):
        return None
    return f"content is {type(content).__name__}; allowed are a string or a list of parts"
