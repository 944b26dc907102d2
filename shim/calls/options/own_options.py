"""The options of a call that are keepwarm's own: priority, deadline and time-outs."""

from __future__ import annotations

import math
import sys
from collections.abc import MutableMapping
from typing import Any, Final

from backends.openai.connections.bounds import Timeouts
from backends.openai.options import shown
from budget.errors import InvalidRequest
from shim.config import ModelEntry
from shim.wire.messages import INTEGER_LIMIT, LONGEST_S

OWN_OPTIONS: Final = (
    "priority", "deadline_s",
    "connect_timeout", "first_token_timeout", "token_timeout", "answer_timeout",
)  # fmt: skip
MAX_PRIORITY: Final = INTEGER_LIMIT
MAX_DEADLINE_S: Final = LONGEST_S
_USUAL: Final = Timeouts()
_HERE: Final = Timeouts(first_token_s=math.inf, between_tokens_s=math.inf, answer_s=_USUAL.stream_s)
"""For an engine of ours: the keeper follows whether it gets on, and ends one that does not."""


def timeouts_of(entry: ModelEntry, own: MutableMapping[str, Any]) -> Timeouts | None:
    """Check a call's own options, take the time-outs out of them, and return those that hold for it.

    The time-outs are those of the call, of its model, or the usual ones. None: the transport's usual ones.

    Raises:
        InvalidRequest: `priority` is no integer, or a time-out or `deadline_s` no positive number.
    """
    base = None if entry.url is not None or entry.backend == "server" else _HERE
    first_s, token_s = entry.first_token_timeout, entry.token_timeout
    connect_s, answer_s = entry.connect_timeout, entry.answer_timeout
    if own:
        _check(own)
        connect_s = _seconds(own, "connect_timeout", connect_s)
        first_s = _seconds(own, "first_token_timeout", first_s)
        token_s = _seconds(own, "token_timeout", token_s)
        answer_s = _seconds(own, "answer_timeout", answer_s)
    if connect_s is first_s is token_s is answer_s is None:
        return base
    base = base or _USUAL
    return Timeouts(
        base.connect_s if connect_s is None else connect_s,
        base.first_token_s if first_s is None else first_s,
        base.between_tokens_s if token_s is None else token_s,
        base.answer_s if answer_s is None else answer_s,
        base.stream_s if answer_s is None else answer_s,
    )


def _check(own: MutableMapping[str, Any]) -> None:
    priority, deadline_s = own.get("priority", 0), own.get("deadline_s", 1.0)
    integer = isinstance(priority, int) and not isinstance(priority, bool)
    if not integer or abs(priority) > MAX_PRIORITY:
        raise InvalidRequest(
            f"priority is {shown(priority)}; an integer is allowed, from -2**53 to 2**53."
        )
    number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
    if not number or not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidRequest(
            f"deadline_s is {shown(deadline_s)}; seconds above 0 are allowed, and at most a year's."
        )


def _seconds(own: MutableMapping[str, Any], name: str, of_model: float | None) -> float | None:
    value = own.pop(name, None)
    if value is None:
        return of_model
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value <= sys.float_info.max:
        raise InvalidRequest(f"{name} is {shown(value)}; seconds above 0 are allowed.", option=name)
    return float(value)
