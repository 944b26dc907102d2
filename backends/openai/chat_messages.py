"""Messages of a chat call as programs have them, in the one form in which endpoints take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from backends.kinds import LLAMA, Backend
from budget.errors import InvalidRequest

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_AS_THEY_ARE: Final = ("user", "assistant", "system", "tool")


def checked_messages(
    messages: Sequence[Mapping[str, Any]] | str, backend: Backend = "llama.cpp"
) -> list[Mapping[str, Any]]:
    """The messages as a list; a plain string is one user message.

    What agents send back is understood: fields and content that are null, calls with arguments as an
    object, the function calls and role `function` of 2023, objects of client libraries. The role
    `developer` is `system` for an engine of ours, whose template knows no other.

    Raises:
        InvalidRequest: empty, or one without an allowed role or content. Facts: `position`.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    found = list(messages) if isinstance(messages, list | tuple) else []
    if not found:
        raise InvalidRequest(
            f"messages is {_what(messages)}; allowed are a string or a non-empty list.",
            hint='Give [{"role": "user", "content": "..."}].',
        )
    last_call = ""
    for position, message in enumerate(found):
        if _is_plain(message):
            continue
        try:
            found[position] = read = _read(message, position, last_call, backend)
        except ValueError as problem:
            raise InvalidRequest(f"messages[{position}]: {problem}.", position=position) from None
        if calls := read.get("tool_calls"):
            last_call = str(calls[-1].get("id", ""))
    return found


def has_images(messages: object) -> bool:
    """Whether a message has an image as a part of its content."""
    if not isinstance(messages, list | tuple):
        return False
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    return any(
        isinstance(part, Mapping) and part.get("type") == "image_url"
        for content in contents
        if isinstance(content, list | tuple)
        for part in content
    )


def _what(messages: object) -> str:
    is_empty = isinstance(messages, list | tuple)
    return "an empty list" if is_empty else f"{type(messages).__name__} instead of a list"


def _is_plain(message: Any) -> bool:
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in _AS_THEY_ARE
    )


def _read(message: Any, position: int, last_call: str, backend: Backend) -> Mapping[str, Any]:
    dump = getattr(message, "model_dump", None)
    if dump is not None:
        message = dump(exclude_none=True)
        message.setdefault("content", None)
    if not isinstance(message, Mapping):
        raise ValueError(f"{type(message).__name__} instead of an object with role and content")
    role = message.get("role")
    if message.get("images"):
        raise ValueError(
            'images beside content, as Ollama has them, would not be seen; allowed is {"type":'
            ' "image_url", "image_url": {"url": "data:image/png;base64,..."}} in content'
        )
    if role not in ROLES:
        raise ValueError(f"role {role!r:.40}; allowed are {', '.join(ROLES)}")
    read = {name: value for name, value in message.items() if value is not None}
    if call := read.pop("function_call", None):
        read["tool_calls"] = [{"id": f"call_{position}", "type": "function", "function": call}]
    if "tool_calls" in read:
        read["tool_calls"] = [_call(call) for call in _a_list(read["tool_calls"], "tool_calls")]
        if not read["tool_calls"]:
            del read["tool_calls"]
    if role == "function":
        read |= {"role": "tool", "tool_call_id": last_call or f"call_{position}"}
    elif role == "developer" and backend in LLAMA:
        read["role"] = "system"
    read["content"] = _content(message, calls="tool_calls" in read)
    return read


def _content(message: Mapping[str, Any], *, calls: bool) -> Any:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and calls:
        return None
    if content is None and "content" in message:
        return ""
    if isinstance(content, list | tuple):
        return [_part(part) for part in content]
    raise ValueError(
        f"content is {type(content).__name__}; allowed are a string or a list of parts"
        + (" (write an object as JSON)" if isinstance(content, Mapping) else "")
    )


def _part(part: Any) -> Mapping[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise ValueError(f"a part of content is {type(part).__name__} instead of an object")
    if isinstance(part.get("type"), str):
        return part
    if isinstance(part.get("text"), str):
        return {"type": "text", **part}
    raise ValueError("a part of content has no type (text, image_url, input_audio)")


def _call(call: Any) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("an item of tool_calls is no call of a function with a name")
    arguments = function.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    read = {name: value for name, value in call.items() if value is not None}
    return read | {"type": "function", "function": {**function, "arguments": arguments}}


def _a_list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {type(value).__name__} instead of a list")
    return value
