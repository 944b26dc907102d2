"""Text and values in the forms that OpenTelemetry and Perfetto's importer both survive."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, Final

from traces import names

Value = str | bool | int | float
_SHORT: Final = frozenset((bool, float, type(None)))
_INT64 = 2**63

LONGEST_MESSAGE: Final = 65_536
"""Characters of an error's message that are kept."""

# Made once: json.dumps makes a new one a call when it is given options.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def clean(text: str) -> str:
    """`text` as valid Unicode: paired surrogates are joined, a lone one becomes U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_value(value: object) -> Value:
    """`value` as an attribute: text, bool, finite number; anything else becomes its JSON or its text.

    What a subclass makes of itself (an enum, a number of another library) never reaches the file.
    """
    if isinstance(value, str):
        return clean(str.__str__(value))
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return int.__int__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__float__(value)
    return _text(value) if isinstance(value, int | float) else _structure(value)


def _structure(value: object) -> str:
    try:
        return clean(_to_json(_plain(value)))
    except Exception:
        # It holds itself, is too deep, changed meanwhile, or its own code failed.
        return _text(value)


def _plain(value: object) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else str(value)
        case None | str() | bool() | int():
            return value
        case _:
            return _text(value)


def _text(value: object) -> str:
    try:
        return clean(str.__str__(str(value)))
    except Exception:
        return f"<{type(value).__name__}>"


def error_text(error: BaseException) -> str:
    """What an error says, whatever its own code does: its first `LONGEST_MESSAGE` characters."""
    text = _text(error)
    more = len(text) - LONGEST_MESSAGE
    return f"{text[:LONGEST_MESSAGE]} ... ({more:,} more characters)" if more > 0 else text


def failure_attributes(error: BaseException | None) -> dict[str, Value]:
    """What a failed span carries of its error."""
    if error is None:
        return {}
    return {names.ERROR_TYPE: clean(type(error).__name__), names.ERROR_MESSAGE: error_text(error)}


def clean_attributes(attributes: Mapping[str, Any]) -> dict[str, Value]:
    """The attributes that have a value, each in a form that every sink can write."""
    return {
        key if type(key) is str and key.isascii() else clean(str(key)): (
            value if type(value) is str and value.isascii() else clean_value(value)
        )
        for key, value in attributes.items()
        if value is not None
    }


def snapshot(attributes: Mapping[str, Any]) -> tuple[dict[str, Value | None], int]:
    """The attributes as they are now, and how many characters they have.

    What can change later, or has code of its own, is made text.
    """
    kept: dict[str, Value | None] = {}
    count = 0
    for key, value in attributes.items():
        kind = type(value)
        if kind in _SHORT or (kind is int and -_INT64 <= value < _INT64):
            kept[key] = value
        else:
            kept[key] = now = value if kind is str else clean_value(value)
            if type(now) is str:
                count += len(now)
        count += len(key)
    return kept, count


def _perfetto(text: str) -> str:
    # Perfetto takes a string's last backslash for an escape of the closing quote and refuses the file:
    # a zero-width space behind it keeps them apart and shows nothing.
    text = clean(text)
    return text + "\u200b" if text.endswith("\\") else text


def quote(text: str) -> str:
    """`text` as a JSON string that Perfetto's importer reads (never with escaped surrogates)."""
    return encode_basestring(_perfetto(text))


quote_known = lru_cache(1024)(quote)
"""As `quote`, for text that comes again and again."""


def quote_clean(arguments: Mapping[str, Value]) -> str:
    """Clean attributes (`clean_attributes`) as a JSON object that Perfetto's importer reads."""
    return (
        "{" + ",".join([f"{quote_known(key)}:{_json(arguments[key])}" for key in arguments]) + "}"
    )


def _json(value: Value) -> str:
    if type(value) is str:
        return encode_basestring(value + "\u200b" if value.endswith("\\") else value)
    if value is True:
        return "true"
    return "false" if value is False else repr(value)


def microseconds(ns: int) -> str:
    """Nanoseconds as a decimal number of microseconds; exact in the importer below 4e15 ns (46 days)."""
    digits = f"{ns:04d}"
    return f"{digits[:-3]}.{digits[-3:]}"
