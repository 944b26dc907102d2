"""Bounds of shapes that llama-server accepts and reads for minutes, while it serves no other request.

It tries every way in which parts that may be left out follow one another, so its time grows with the cube
of their number: 250 times `"a"?` take longer than 20 s, 300 optional properties 4 s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from budget.errors import InvalidRequest

MAX_EQUAL_OPTIONAL: Final = 64
"""Equal parts in a row that may be left out. Different ones cost little."""
MAX_OPTIONAL_PROPERTIES: Final = 300

# Parts have lengths, so that no text takes long to look at.
_PART: Final = (
    r'(?:"(?:[^"\\\n]|\\.){0,40}"|\[(?:[^\]\\]|\\.){0,40}\]|\([^()]{0,40}\)|[\w-]{1,40}|\\.|\S)'
)
_REPEATED: Final = re.compile(
    rf"({_PART}\s{{0,9}}(?:[?*]|\{{0?,\d{{0,9}}\}}))(?:\s{{0,9}}\1){{{MAX_EQUAL_OPTIONAL},}}"
)


def check_repeats(text: str, what: str) -> None:
    """Refuse a grammar or a pattern in which one optional part stands too many times in a row.

    Raises:
        InvalidRequest: it does.
    """
    if text.count("?") + text.count("*") + text.count("{") <= MAX_EQUAL_OPTIONAL:
        return
    if found := _REPEATED.search(text):
        part = found[1]
        raise InvalidRequest(
            f"the {what} has {part} more than {MAX_EQUAL_OPTIONAL} times in a row, for which an engine"
            " takes minutes.",
            hint="Write x{0,80} instead of x? eighty times, and x* once.",
            option=what,
            part=part,
        )


def check_cost(value: Any, what: str) -> None:
    """Refuse a part of a schema that an engine would read for minutes.

    Raises:
        InvalidRequest: too many of its properties are optional, or `check_repeats` of its pattern.
    """
    if not isinstance(value, Mapping):
        return
    if isinstance(pattern := value.get("pattern"), str):
        check_repeats(pattern, "pattern")
    properties, required = value.get("properties"), value.get("required")
    if not isinstance(properties, Mapping) or len(properties) <= MAX_OPTIONAL_PROPERTIES:
        return
    named = {str(name) for name in required} if isinstance(required, list | tuple) else set()
    optional = sum(1 for name in properties if name not in named)
    if optional > MAX_OPTIONAL_PROPERTIES:
        raise InvalidRequest(
            f"the {what} has an object of {optional} optional properties, for which an engine takes"
            f" minutes; {MAX_OPTIONAL_PROPERTIES} are sent.",
            hint="Name those that are always there in required.",
            option=what,
        )
