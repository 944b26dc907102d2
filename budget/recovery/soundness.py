"""What no event may carry, wherever it comes from: refused before anything changes.

The keeper's server checks what clients send as well; the core relies on its own checks alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from budget import events as ev
from budget.books.engines import NO_TIMEOUT, EngineSpec, ModelSpec, PlacementOption
from budget.errors import InternalError, InvalidRequest, KeepwarmError
from budget.settings import CoreSettings

WANTS: Final = frozenset(("lease", "load", "pin"))
HINTS: Final = frozenset(("release", "unload", "unpin"))
_NONE: Final = "-"
_NEITHER: Final = (False, False)
MOST_PRIORITY: Final = 2**53
"""Beyond this a priority is no number that every reader of JSON can tell from the next one."""


def request(event: ev.RequestArrived) -> None:
    """Raise `InvalidRequest` unless every field is what it says."""
    want: Any = event.want
    priority: Any = event.priority
    plan, owner = event.plan, event.owner
    names = (event.request_id, event.client_id, event.model, plan or _NONE, owner or _NONE)
    try:
        # All in one look: there is a request for every call, and nearly all are plain.
        plain = "".join(names).isascii() and "" not in names
    except TypeError:
        plain = False
    if not plain and not all(map(is_name, names)):
        raise _invalid(event, "ids, models, owners and names of declared uses are texts")
    if (not plan and plan is not None) or (not owner and owner is not None):
        raise _invalid(event, "ids, models, owners and names of declared uses are texts")
    if want != "lease" and (type(want) is not str or want not in WANTS):
        raise _invalid(event, f"want is one of {', '.join(sorted(WANTS))}")
    if priority is not None and (type(priority) is not int or abs(priority) > MOST_PRIORITY):
        raise _invalid(event, f"priority is an integer between -2**53 and 2**53, not {priority!r}")
    if event.deadline is not None and not is_number(event.deadline):
        raise _invalid(event, f"deadline is a finite number, not {event.deadline!r}")
    flags = (event.preemptible, event.persist)
    if flags != _NEITHER and not all(flag is True or flag is False for flag in flags):
        raise _invalid(event, "preemptible and persist are true or false")


def hint(event: ev.HintGiven) -> None:
    """Raise `InvalidRequest` unless it is a hint about a model."""
    if not isinstance(event.kind, str) or event.kind not in HINTS or not is_name(event.model):
        raise _invalid(event, f"a hint is one of {', '.join(sorted(HINTS))}, about a model")


def uses(event: ev.UsesDeclared) -> None:
    """Raise `InvalidRequest` unless it is a row of names."""
    names = (event.client_id, event.client_id if event.plan is None else event.plan)
    row = event.models
    sound = isinstance(row, tuple) and all(map(is_name, row)) and all(map(is_name, names))
    if not sound or type(event.any_order) is not bool:
        raise _invalid(event, "declared uses are a row of models, by a client")


def ids(*found: object) -> None:
    """Raise `InternalError` unless all are names."""
    if not all(map(is_name, found)):
        raise InternalError(f"ids are texts, not {found!r}")


def error(found: object) -> None:
    """Raise `InternalError` unless it is an error on the wire."""
    if not isinstance(found, Mapping):
        raise InternalError(f"an error on the wire is a mapping, not {found!r}")


def figures(**found: object) -> None:
    """Raise `InternalError` unless all are whole numbers, or None where that means unknown."""
    for name, figure in found.items():
        if figure is not None and type(figure) is not int:
            raise InternalError(f"{name} is {figure!r}, which is no number of bytes")


def configuration(event: ev.Reconfigured) -> None:
    """Raise `InternalError` unless models, placements, limits and settings are of their types."""
    for entry in event.models:
        if reason := _wrong_entry(entry):
            raise InternalError(f"{entry!r}: {reason}")
    for spec in event.engines:
        if reason := _wrong_spec(spec):
            raise InternalError(f"{spec!r}: {reason}")
    for name, limit in event.limits.items():
        if not is_name(name) or type(limit) is not int or limit < 0:
            raise InternalError(f"the limit of {name!r} is {limit!r}")
    for name, found in event.errors.items():
        ids(name)
        error(found)
    if event.settings is not None and (reason := _wrong_settings(event.settings)):
        raise InternalError(f"{event.settings!r}: {reason}")


def options(found: object) -> None:
    """Raise `InternalError` unless these are placements."""
    if not isinstance(found, tuple):
        raise InternalError(f"placements are a row, not {found!r}")
    for option in found:
        if reason := _wrong_option(option):
            raise InternalError(f"{option!r}: {reason}")


def is_name(found: object) -> bool:
    """Whether something is a text that can be sent: not empty, and no half of a character in it."""
    if not isinstance(found, str) or not found:
        return False
    if found.isascii():
        return True
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(found: object) -> bool:
    """Whether something is a finite number."""
    if not isinstance(found, int | float) or isinstance(found, bool):
        return False
    return -1e300 < found < 1e300


def _wrong_entry(entry: ModelSpec) -> str:
    if not is_name(entry.name) or not is_name(entry.engine_id):
        return "names are texts"
    keep_alive_s = entry.keep_alive_s
    if not is_number(keep_alive_s) or (keep_alive_s < 0 and keep_alive_s != NO_TIMEOUT):
        return f"keep_alive is {keep_alive_s!r}"
    if type(entry.priority) is not int or abs(entry.priority) > MOST_PRIORITY:
        return f"priority is {entry.priority!r}"
    if entry.max_queue is not None and (type(entry.max_queue) is not int or entry.max_queue < 0):
        return f"max_queue is {entry.max_queue!r}"
    return ""


def _wrong_spec(spec: EngineSpec) -> str:
    if not is_name(spec.engine_id):
        return "ids are texts"
    if type(spec.slots) is not int or spec.slots < 1:
        return f"slots are {spec.slots!r}"
    return next((reason for option in spec.options if (reason := _wrong_option(option))), "")


def _wrong_option(option: PlacementOption) -> str:
    if not is_number(option.load_seconds) or option.load_seconds < 0:
        return f"load_seconds are {option.load_seconds!r}"
    if type(option.tier) is not int or type(option.threads) is not int:
        return f"tier is {option.tier!r} and threads are {option.threads!r}"
    return wrong_bookings(option.bookings)


def wrong_bookings(bookings: object) -> str:
    """Why something is not bytes by device; empty when it is."""
    if not isinstance(bookings, tuple):
        return f"bytes by device are {bookings!r}"
    devices: set[Any] = set()
    for row in bookings:
        if not isinstance(row, tuple) or len(row) != 2 or not is_name(row[0]):
            return f"bytes by device are {bookings!r}"
        if type(row[1]) is not int or row[1] < 0 or row[0] in devices:
            return f"bytes by device are {bookings!r}"
        devices.add(row[0])
    return ""


def _wrong_settings(found: CoreSettings) -> str:
    if type(found.max_wait_s) not in (int, float) or not 0.0 <= found.max_wait_s <= math.inf:
        return f"max_wait_s is {found.max_wait_s!r}"
    bounds = (found.max_queue, found.max_queue_per_model, found.cores)
    if any(bound is not None and (type(bound) is not int or bound < 0) for bound in bounds):
        return f"bounds are {bounds!r}"
    return ""


def _invalid(event: object, rule: str) -> KeepwarmError:
    return InvalidRequest(
        f"{type(event).__name__} does not hold: {rule}.", hint="Nothing was changed."
    )
