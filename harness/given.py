"""What a caller gives, checked at every public door: a wrong type is told with what was found and allowed.

Python would go on with it until something deep inside has no such attribute. True is no number here, NaN is
none, and a text is no list of texts, though to Python it is one of its letters.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from shim import InvalidRequest

_Many = TypeVar("_Many", bound=Iterable[object] | Collection[object])
_One = TypeVar("_One")
_Number = TypeVar("_Number", int, float)
_Table = TypeVar("_Table", bound=Mapping[Any, Any])
_Called = TypeVar("_Called", bound=Callable[..., object])
_Named = TypeVar("_Named", bound=Path | str)
_SHOWN: Final = 60
"""Characters of a wrong value that an error quotes."""


def refused(what: str, given: object, allowed: str, hint: str | None = None) -> InvalidRequest:
    """The error of a value that is not allowed."""
    try:
        shown = f"{given!r:.{_SHOWN}}"
    except ValueError:  # Python writes no whole number of over 4,300 digits
        shown = "a number of too many digits"
    return InvalidRequest(
        f"{what} cannot be {shown} ({type(given).__name__}).",
        hint=hint or f"Give {allowed}.",
        found=shown,
        allowed=allowed,
    )


def a_list(what: str, given: _Many, of: type | tuple[type, ...] = object) -> _Many:
    """What was given, once it is known to be a list of something; one that is used up is not looked into.

    Raises:
        InvalidRequest: it is one text, nothing that can be gone through, or has another thing in it.
    """
    if isinstance(given, str | bytes):
        raise InvalidRequest(
            f"{what} are a list, not the text {given[:_SHOWN]!r}.", hint="Write [ ] around it."
        )
    if not isinstance(given, Iterable):
        raise InvalidRequest(
            f"{what} are a list, not {type(given).__name__}.", hint="Write [ ] around it."
        )
    if of is not object and isinstance(given, Collection):
        for one in given:
            an_object(f"One of {what[:1].lower()}{what[1:]}", one, of)
    return given


def an_object(what: str, given: _One, kinds: type | tuple[type, ...]) -> _One:
    """What was given, once it is known to be of one of these types.

    Raises:
        InvalidRequest: it is of another one.
    """
    if isinstance(given, kinds):
        return given
    listed = kinds if isinstance(kinds, tuple) else (kinds,)
    names = ["None" if kind is type(None) else kind.__name__ for kind in listed]
    raise refused(what, given, " or ".join(names))


def a_text(what: str, given: str) -> str:
    """What was given, once it is known to be a text.

    Raises:
        InvalidRequest: it is none.
    """
    return given if isinstance(given, str) else an_object(what, given, str)


def a_number(what: str, given: _Number, least: float, most: float = math.inf) -> _Number:
    """What was given, once it is known to be a finite number within bounds.

    Raises:
        InvalidRequest: it is no number, or outside.
    """
    right = isinstance(given, int | float) and not isinstance(given, bool)
    # A whole number can be larger than the largest float.
    if right and abs(given) <= sys.float_info.max and least <= given <= most:
        return given
    raise refused(what, given, f"a number{_bounds(least, most)}")


def a_count(what: str, given: int, least: float = 1, most: float = math.inf) -> int:
    """What was given, once it is known to be a whole number within bounds.

    Raises:
        InvalidRequest: it is no whole number, or outside.
    """
    if isinstance(given, int) and not isinstance(given, bool) and least <= given <= most:
        return given
    raise refused(what, given, f"a whole number{_bounds(least, most)}")


def a_table(what: str, given: _Table) -> _Table:
    """What was given, once it is known to be a table with texts as keys.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return given
    raise refused(what, given, "a table, as {'name': value}")


def options_beside(given: _Table) -> _Table:
    """Options of `Shim.chat`, once it is known that they have neither the model nor the messages.

    Raises:
        InvalidRequest: they are no table, or have one.
    """
    if theirs := sorted({"model", "messages"} & set(a_table("`options`", given))):
        raise InvalidRequest(
            f"`options` cannot have {' and '.join(theirs)}, which are given elsewhere.",
            hint="Leave them out of the options.",
        )
    return given


def a_function(what: str, given: _Called, *, awaited: bool = False) -> _Called:
    """What was given, once it is known to be a function: one that answers at once, or can be `awaited`.

    Raises:
        InvalidRequest: it is none, or an `async def` where that is not awaited.
    """
    if not callable(given):
        raise refused(what, given, "a function")
    if not awaited and inspect.iscoroutinefunction(given):
        # What it returns is no answer, and true as a condition.
        raise refused(what, given, "a function that is not async")
    return given


def a_file(what: str, given: _Named) -> Path:
    """The path that was given, as one or as a text.

    Raises:
        InvalidRequest: it is neither, or a name that no file can have.
    """
    path = Path(an_object(what, given, (Path, str)))
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise refused(what, given, "a name without zero bytes and half characters")
    return path


def _bounds(least: float, most: float) -> str:
    if most < math.inf:
        return f" from {least:g} to {most:g}"
    return f" of {least:g} or more" if least > -math.inf else ""
