"""Fields of foreign JSON, read by their types: what a field may not be is said, never met later.

Text, lists and objects of the wrong type make an answer unreadable. Figures (tokens, milliseconds) that
are no counts are left out: an answer is not lost for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from traces.text import clean

Figure = tuple[type[int] | type[float], float]
"""The type of a figure, and the most that it can be."""
COUNT: Final[Figure] = (int, 1 << 53)
"""A number of tokens."""
MILLISECONDS: Final[Figure] = (float, 1e12)


class WrongField(ValueError):
    """A field has a type that the protocol does not give it; says which, without quoting it."""

    def __init__(self, name: str, found: Any, due: str) -> None:
        super().__init__(f"{name} is {kind(found)}, where {due} is due")


def kind(value: Any) -> str:
    """The JSON type of a value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else "a list"


def an_object(value: Any, name: str) -> Mapping[str, Any]:
    """An object; an empty one for null.

    Raises:
        WrongField: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WrongField(name, value, "an object")
    return value


def a_list(value: Any, name: str) -> Sequence[Any]:
    """A list; an empty one for null.

    Raises:
        WrongField: it is something else.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise WrongField(name, value, "a list")
    return value


def objects(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """A list of objects; an empty one for null.

    Raises:
        WrongField: it is something else.
    """
    found = a_list(value, name)
    for item in found:
        if not isinstance(item, Mapping):
            raise WrongField(f"an item of {name}", item, "an object")
    return tuple(found)


def a_text(value: Any, name: str) -> str:
    """A string; an empty one for null.

    Raises:
        WrongField: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WrongField(name, value, "a string")
    return value


def a_name(value: Any, name: str) -> str:
    """A string that can be printed; an empty one for null.

    Raises:
        WrongField: it is something else.
    """
    if isinstance(value, str) and value.isascii():
        return value
    return clean(a_text(value, name))


def figures(found: Mapping[str, Any], table: Mapping[str, Figure]) -> dict[str, Any]:
    """The figures of a table by name, 0 for what is none."""
    read: dict[str, Any] = {}
    for name, (kind_of, most) in table.items():
        value = found.get(name)
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
        # The first is false for NaN.
        fits = 0 <= number <= most and (kind_of is float or number == int(number))
        read[name] = kind_of(number if fits else 0)
    return read


def parts(value: Any, name: str) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a string, null, or a list of parts.

    Raises:
        WrongField: it is something else.
    """
    if value is None or isinstance(value, str):
        return value or "", ""
    said: list[str] = []
    thought: list[str] = []
    for part in objects(value, name):
        if part.get("type") == "thinking":
            thought.append(_thought(part.get("thinking"), name))
        else:
            said.append(a_text(part.get("text"), f"a part of {name}"))
    return "".join(said), "".join(thought)


def _thought(value: Any, name: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "".join(a_text(part.get("text"), name) for part in objects(value, name))
