"""What a caller gives, checked at every public door as traces do it; a mistake is an `InvalidRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from shim import InvalidRequest
from traces.checked import Checks, shown

_Table = TypeVar("_Table", bound=Mapping[Any, Any])


def refused(what: str, given: object, allowed: str) -> InvalidRequest:
    """The error of a value that is not allowed."""
    found = shown(given)
    return InvalidRequest(
        f"{what} cannot be {found} ({type(given).__name__}).",
        hint=f"Give {allowed}.",
        found=found,
        allowed=allowed,
    )


_CHECKS: Final = Checks(refused)
an_object, a_text, a_number = _CHECKS.an_object, _CHECKS.a_text, _CHECKS.a_number
a_count, a_list, a_table = _CHECKS.a_count, _CHECKS.a_list, _CHECKS.a_table
a_function, a_file = _CHECKS.a_function, _CHECKS.a_file


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
