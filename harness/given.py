"""What a caller gives: a text is no list of texts, though to Python it is one of its letters."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, TypeVar

from shim import InvalidRequest

_Many = TypeVar("_Many", bound=Iterable[object] | Collection[object])
_SHOWN: Final = 60
"""Characters of a wrong text that an error quotes."""


def a_list(what: str, given: _Many) -> _Many:
    """What was given, once it is known to be a list of something.

    Raises:
        InvalidRequest: it is one text, or nothing that can be gone through.
    """
    if isinstance(given, str | bytes):
        raise InvalidRequest(
            f"{what} are a list, not the text {given[:_SHOWN]!r}.", hint="Write [ ] around it."
        )
    if not isinstance(given, Iterable):
        raise InvalidRequest(
            f"{what} are a list, not {type(given).__name__}.", hint="Write [ ] around it."
        )
    return given
