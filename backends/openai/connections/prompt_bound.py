"""Refuses a prompt that no context can hold, before it is sent.

llama-server reads and tokenizes a prompt of 20 MB for 15 s and with a gigabyte before it refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from backends.base import Endpoint
from backends.foreign.foreign_json import parse_json
from budget.errors import PromptTooLong

TOKEN_BYTES: Final = 256
"""No token is longer. The longest of known vocabularies are rows of 128 spaces or dashes."""
_PADDING_TOKENS: Final = 256
"""llama.cpp rounds a context up by less."""
_MESSAGE_BYTES: Final = 64
"""A message counts as this much at least. Its role takes tokens of its own in a chat template, and
llama-server puts a hundred thousand messages through one for half a minute."""


def check_prompt(endpoint: Endpoint, body: bytes) -> None:
    """Refuse a request whose texts have more bytes than its context has room for.

    Raises:
        PromptTooLong: facts `n_ctx`, `n_bytes` and `most_bytes`.
    """
    if endpoint.context_per_slot is None:
        return
    most = (endpoint.context_per_slot + _PADDING_TOKENS) * TOKEN_BYTES
    try:
        n_bytes = _longest(parse_json(body))
    except ValueError:
        return
    if n_bytes <= most:
        return
    raise PromptTooLong(
        f"the prompt for {endpoint.name} has {n_bytes} bytes: a context of "
        f"{endpoint.context_per_slot} tokens holds {most} at most.",
        hint="Shorten the input, or raise context of the model: a request can use context / slots.",
        n_ctx=endpoint.context_per_slot,
        n_bytes=n_bytes,
        most_bytes=most,
    )


def _longest(asked: object) -> int:
    """The bytes of the longest text that has to fit a context: a text to embed, or all messages."""
    if not isinstance(asked, Mapping):
        return 0
    given = asked.get("input")
    inputs = given if isinstance(given, list) else [given]
    each = [_size(text) for text in inputs if isinstance(text, str)]
    return max([*each, sum(map(_room, _messages(asked.get("messages"))))])


def _messages(messages: object) -> list[Any]:
    return messages if isinstance(messages, list) else []


def _room(message: object) -> int:
    return max(sum(map(_size, _texts(message))), _MESSAGE_BYTES)


def _texts(message: object) -> Iterator[str]:
    """The texts of a message, without images and sound."""
    content: Any = message.get("content") if isinstance(message, Mapping) else None
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
