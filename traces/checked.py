"""What a program gives, checked at every public door: a wrong type is told with what was found and allowed.

Python would go on with it until something deep inside has no such attribute, and by then a request may
have ended. True is no number here, NaN is none, and a text is no list of texts, though to Python it is one
of its letters.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

_One = TypeVar("_One")
_Many = TypeVar("_Many", bound=Iterable[object])
_Number = TypeVar("_Number", int, float)
_Table = TypeVar("_Table", bound=Mapping[Any, Any])
_Called = TypeVar("_Called", bound=Callable[..., object])
_AGE_NS: Final = 2**62
_LARGEST: Final = sys.float_info.max
_SHOWN: Final = 60
"""Characters of a wrong value that an error quotes."""


class InvalidArgument(ValueError):
    """A value that a trace cannot take: `what` was given, how it looks (`found`), and what is `allowed`."""

    def __init__(self, what: str, given: object, allowed: str) -> None:
        self.what, self.found, self.allowed = what, shown(given), allowed
        super().__init__(f"{what} cannot be {self.found} ({type(given).__name__}). Give {allowed}.")


class EnteredTwice(RuntimeError):
    """A run or a span was entered that is open, or a run that has ended: `what` says which one."""

    def __init__(self, what: str, instead: str) -> None:
        self.what = what
        super().__init__(f"{what} was entered before. {instead}")


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of one package. Each returns what was given, once it is known to be allowed.

    Args:
        refused: makes the error of a value, of what it is, the value itself, and what is allowed.
    """

    refused: Callable[[str, object, str], Exception]

    def an_object(
        self, what: str, given: _One, kinds: type | tuple[type, ...], allowed: str = ""
    ) -> _One:
        """An object of one of these types."""
        if isinstance(given, kinds):
            return given
        listed = kinds if isinstance(kinds, tuple) else (kinds,)
        names = ["None" if kind is type(None) else kind.__name__ for kind in listed]
        raise self.refused(what, given, allowed or " or ".join(names))

    def a_text(self, what: str, given: str) -> str:
        """A text."""
        return given if isinstance(given, str) else self.an_object(what, given, str, "a text")

    def a_number(self, what: str, given: _Number, least: float, most: float = math.inf) -> _Number:
        """A finite number within bounds."""
        if _is_number(given) and least <= given <= most:
            return given
        raise self.refused(what, given, f"a number{_bounds(least, most)}")

    def a_count(self, what: str, given: int, least: float = 1) -> int:
        """A whole number within bounds."""
        if _is_whole(given) and least <= given:
            return given
        raise self.refused(what, given, f"a whole number{_bounds(least)}")

    def a_list(self, what: str, given: _Many, of: type | tuple[type, ...] = object) -> _Many:
        """A list of something, and no text; one that a look would use up is looked into as it is used."""
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise self.refused(what, given, "a list, with [ ] around it")
        if of is object:
            return given
        each = (self.an_object(f"One of {what[:1].lower()}{what[1:]}", one, of) for one in given)
        if not isinstance(given, Collection):
            return cast("_Many", each)
        for _ in each:
            pass
        return given

    def a_table(self, what: str, given: _Table) -> _Table:
        """A table with texts as keys."""
        if _is_table(given):
            return given
        raise self.refused(what, given, _A_TABLE)

    def a_function(self, what: str, given: _Called, *, awaited: bool = False) -> _Called:
        """A function that answers at once, or may be `awaited`."""
        if not callable(given):
            raise self.refused(what, given, "a function")
        if not awaited and inspect.iscoroutinefunction(given):
            # What it returns is no answer, and true as a condition.
            raise self.refused(what, given, "a function that is not async")
        return given

    def a_file(self, what: str, given: os.PathLike[str] | str) -> Path:
        """The path that was given, as one or as a text, if a system can have such a one."""
        with suppress(Exception):  # also of a path's own code
            path = os.fspath(given)
            if path and "\0" not in path and os.fsencode(path):
                return Path(path)
        allowed = "a path that is not empty, without zero bytes and half characters"
        raise self.refused(what, given, allowed)


_CHECKS: Final = Checks(InvalidArgument)
an_object, a_text, a_number = _CHECKS.an_object, _CHECKS.a_text, _CHECKS.a_number
a_list, a_table, a_function = _CHECKS.a_list, _CHECKS.a_table, _CHECKS.a_function
a_file = _CHECKS.a_file


def a_moment(what: str, given: int) -> int:
    """What was given, once it is known to be a time in nanoseconds of the monotonic clock.

    Raises:
        InvalidArgument: it is no whole number, or no time of this age.
    """
    if _is_whole(given) and 0 <= given < _AGE_NS:
        return given
    raise InvalidArgument(what, given, "nanoseconds of time.monotonic_ns(), a whole number")


class CheckedFields:
    """A dataclass whose fields are of the types that it declares.

    Raises:
        InvalidArgument: one is not.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, exact, allows, allowed in _rules_of(kind):
            value = getattr(self, name)
            if type(value) not in exact and not allows(value):
                raise InvalidArgument(f"{name} of a {kind.__name__}", value, allowed)


_Rule = tuple[str, frozenset[type], Callable[[Any], bool], str]
"""A field's name, types that need no further look, what looks at a value of another one, and the words."""


@cache
def _rules_of(kind: Any) -> tuple[_Rule, ...]:
    hints = get_type_hints(kind)
    return tuple(_rule(one.name, hints[one.name]) for one in fields(kind))


def _rule(name: str, hint: Any) -> _Rule:
    of, *others = get_args(hint) if type(None) in get_args(hint) else (hint,)
    kind, values = get_origin(of) or of, get_args(of)
    allows, allowed = _KINDS.get(kind) or (values.__contains__, " or ".join(map(repr, values)))
    exact = frozenset((kind, *others)) - {float}  # which has NaN
    return name, exact, allows, f"{allowed} or None" if others else allowed


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number can be larger than the largest float; NaN is no less than anything.
    return real and -_LARGEST <= value <= _LARGEST


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


_A_TABLE: Final = "a table, as {'name': value}"
_KINDS: Final[dict[Any, tuple[Callable[[Any], bool], str]]] = {
    str: (lambda value: isinstance(value, str), "a text"),
    bool: (lambda _: False, "True or False"),
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a number"),
    Mapping: (_is_table, _A_TABLE),
    tuple: (lambda value: isinstance(value, list), "a tuple"),
}


def shown(given: object) -> str:
    """The beginning of a value as an error quotes it, whatever the value's own code does."""
    try:
        text = repr(given)
    except Exception:
        return "a value that cannot be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _bounds(least: float, most: float = math.inf) -> str:
    if most < math.inf:
        return f" from {least:g} to {most:g}"
    return f" of {least:g} or more" if least > -math.inf else ""
