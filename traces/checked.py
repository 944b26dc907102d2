"""What a program gives, checked at every public door: a wrong type is told with what was found and allowed.

Python would go on with it until something deep inside has no such attribute, and by then a request may
have ended. True is no number here, and NaN is none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

_One = TypeVar("_One")
_Called = TypeVar("_Called", bound=Callable[..., object])
_AGE_NS: Final = 2**62
_SHOWN: Final = 60
"""Characters of a wrong value that an error quotes."""


class InvalidArgument(ValueError):
    """A value that a trace cannot take: `what` was given, how it looks (`found`), and what is `allowed`."""

    def __init__(self, what: str, given: object, allowed: str) -> None:
        self.what, self.found, self.allowed = what, _shown(given), allowed
        super().__init__(f"{what} cannot be {self.found} ({type(given).__name__}). Give {allowed}.")


class EnteredTwice(RuntimeError):
    """A run or a span was entered that is open, or a run that has ended: `what` says which one."""

    def __init__(self, what: str, instead: str) -> None:
        self.what = what
        super().__init__(f"{what} was entered before. {instead}")


def an_object(what: str, given: _One, kinds: type | tuple[type, ...], allowed: str = "") -> _One:
    """What was given, once it is known to be of one of these types.

    Raises:
        InvalidArgument: it is of another one.
    """
    if isinstance(given, kinds):
        return given
    listed = kinds if isinstance(kinds, tuple) else (kinds,)
    raise InvalidArgument(what, given, allowed or " or ".join(kind.__name__ for kind in listed))


def a_text(what: str, given: str) -> str:
    """What was given, once it is known to be a text.

    Raises:
        InvalidArgument: it is none.
    """
    return an_object(what, given, str, "a text")


def a_number(what: str, given: Any, least: float, most: float = math.inf) -> float:
    """What was given, once it is known to be a finite number within bounds.

    Raises:
        InvalidArgument: it is no number, or outside.
    """
    if _is_number(given) and least <= given <= most:
        return float(given)
    bounds = f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
    raise InvalidArgument(what, given, f"a number {bounds}")


def a_moment(what: str, given: Any) -> int:
    """What was given, once it is known to be a time in nanoseconds of the monotonic clock.

    Raises:
        InvalidArgument: it is no whole number, or no time of this age.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < _AGE_NS:
        return given
    raise InvalidArgument(what, given, "nanoseconds of time.monotonic_ns(), a whole number")


def a_table(what: str, given: Any) -> Mapping[str, Any]:
    """What was given, once it is known to be a table with texts as keys.

    Raises:
        InvalidArgument: it is none.
    """
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return given
    raise InvalidArgument(what, given, "a table, as {'name': value}")


def a_function(what: str, given: _Called) -> _Called:
    """What was given, once it is known to be callable.

    Raises:
        InvalidArgument: it is not.
    """
    if callable(given):
        return given
    raise InvalidArgument(what, given, "a function")


def a_list(what: str, given: Any, of: type) -> tuple[Any, ...]:
    """What was given, once it is known to be a list of such things.

    Raises:
        InvalidArgument: it is none, or has another thing in it.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgument(what, given, f"a list of {of.__name__}")
    found = tuple(given)
    for one in found:
        an_object(f"one of the {what}", one, of)
    return found


def a_place(what: str, given: Any) -> Path:
    """The path that was given, as one or as a text.

    Raises:
        InvalidArgument: it is neither, or no system has such a path.
    """
    path = os.fspath(given) if isinstance(given, os.PathLike) else given
    if isinstance(path, str) and path and "\0" not in path:
        with suppress(UnicodeEncodeError):
            os.fsencode(path)
            return Path(path)
    raise InvalidArgument(what, given, "a path")


def check_fields(record: Any) -> None:
    """Nothing, for a record (a dataclass) whose fields are of the types that it declares.

    Raises:
        InvalidArgument: one is not.
    """
    for name, exact, allows, allowed in _rules_of(type(record)):
        value = getattr(record, name)
        if type(value) not in exact and not allows(value):
            raise InvalidArgument(f"{name} of a {type(record).__name__}", value, allowed)


class _Rule(NamedTuple):
    """`exact` are types that need no further look; `allows` looks at a value of another one."""

    name: str
    exact: frozenset[type]
    allows: Callable[[Any], bool]
    allowed: str


_RULES: Final[dict[type, tuple[_Rule, ...]]] = {}


def _rules_of(kind: Any) -> tuple[_Rule, ...]:
    known = _RULES.get(kind)
    if known is None:
        hints = get_type_hints(kind)
        known = tuple(_rule(one.name, hints[one.name]) for one in fields(kind))
        _RULES[kind] = known
    return known


def _rule(name: str, hint: Any) -> _Rule:
    union = get_args(hint) if type(None) in get_args(hint) else (hint,)
    optional = len(union) > 1
    exact, allows, allowed = _KINDS.get(_plain(union[0])) or _literal(union[0])
    if optional:
        exact, allowed = exact | {type(None)}, f"{allowed} or None"
    return _Rule(name, exact, allows, allowed)


def _plain(hint: Any) -> Any:
    origin = get_origin(hint)
    return hint if origin in (None, Literal) else origin


_Kind = tuple[frozenset[type], Callable[[Any], bool], str]


def _literal(hint: Any) -> _Kind:
    values = get_args(hint)
    return frozenset(), lambda value: value in values, " or ".join(map(repr, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: Final[dict[Any, _Kind]] = {
    str: (frozenset((str,)), lambda value: isinstance(value, str), "a text"),
    bool: (frozenset((bool,)), lambda _: False, "True or False"),
    int: (
        frozenset((int,)),
        lambda value: isinstance(value, int) and not isinstance(value, bool),
        "a whole number",
    ),
    float: (frozenset(), _is_number, "a number"),
    Mapping: (
        frozenset(),
        lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
        "a table, as {'name': value}",
    ),
    tuple: (frozenset((tuple,)), lambda value: isinstance(value, list), "a tuple"),
}


def _shown(given: object) -> str:
    try:
        text = repr(given)
    except Exception:
        return "a value that cannot be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
