"""The time-outs of one request: those of the call, of its model, or the usual ones."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any, Final

from backends.openai.connections.bounds import Timeouts
from budget.errors import InvalidRequest
from shim.calls.call import TIMEOUT_OPTIONS
from shim.config import ModelEntry

_USUAL: Final = Timeouts()
_HERE: Final = Timeouts(first_token_s=math.inf, between_tokens_s=math.inf, answer_s=_USUAL.stream_s)
"""For an engine of ours: the keeper follows whether it gets on, and ends one that does not."""


def timeouts_of(entry: ModelEntry, own: MutableMapping[str, Any]) -> Timeouts | None:
    """Take the time-outs out of a call's own options, and return those that hold for it.

    None: the transport's usual ones.

    Raises:
        InvalidRequest: a time-out is no positive number of seconds.
    """
    base = None if entry.url is not None else _HERE
    given = (entry.first_token_timeout, entry.token_timeout, entry.answer_timeout)
    if own.keys().isdisjoint(TIMEOUT_OPTIONS):
        if given == (None, None, None):
            return base
        first_s, token_s, answer_s = given
    else:
        asked = [_seconds(name, own.pop(name, None)) for name in TIMEOUT_OPTIONS]
        first_s, token_s, answer_s = (
            of_model if of_call is None else of_call
            for of_call, of_model in zip(asked, given, strict=True)
        )
    base = base or _USUAL
    return Timeouts(
        base.connect_s,
        base.first_token_s if first_s is None else first_s,
        base.between_tokens_s if token_s is None else token_s,
        base.answer_s if answer_s is None else answer_s,
        base.stream_s if answer_s is None else answer_s,
    )


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not 0 < value < math.inf:
        raise InvalidRequest(f"{name} is {value!r:.80}; seconds above 0 are allowed.", option=name)
    return float(value)
