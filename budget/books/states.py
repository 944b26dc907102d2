"""Residency: the states of an engine and the one table of transitions between them."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """The state of an engine's residency. `resident` is IDLE or LEASED; an ABSENT file may be staged."""

    ABSENT = "absent"
    LOADING = "loading"
    IDLE = "idle"
    LEASED = "leased"
    EVICTING = "evicting"
    FAILED = "failed"

    # Members are single and compared by identity; Enum's own hash is a Python call each time.
    __hash__ = object.__hash__


class Trigger(Enum):
    """What moves an engine from one state to another."""

    BOOK = "book"
    LOADED = "loaded"
    LOAD_FAILED = "load_failed"
    ABANDON = "abandon"
    LEASE = "lease"
    LAST_LEASE_ENDED = "last_lease_ended"
    EVICT = "evict"
    UNLOADED = "unloaded"
    DIED = "died"

    # Members are single and compared by identity; Enum's own hash is a Python call each time.
    __hash__ = object.__hash__


# Names of their own for what every decision looks at: a member is looked up on its Enum slowly
# before Python 3.12.
LOADING: Final = State.LOADING
IDLE: Final = State.IDLE
LEASED: Final = State.LEASED
EVICTING: Final = State.EVICTING
LEASE: Final = Trigger.LEASE
LAST_LEASE_ENDED: Final = Trigger.LAST_LEASE_ENDED

RESIDENT: Final = frozenset((IDLE, LEASED))
"""The states of an engine that can serve."""
DORMANT: Final = frozenset((State.ABSENT, State.FAILED))
"""The states of an engine that holds nothing and may be loaded."""

TRANSITIONS: Final[dict[tuple[State, Trigger], State]] = {
    (State.ABSENT, Trigger.BOOK): State.LOADING,
    (State.LOADING, Trigger.LOADED): State.IDLE,
    (State.LOADING, Trigger.LOAD_FAILED): State.FAILED,
    (State.LOADING, Trigger.ABANDON): State.EVICTING,
    (State.IDLE, Trigger.LEASE): State.LEASED,
    (State.IDLE, Trigger.EVICT): State.EVICTING,
    (State.IDLE, Trigger.DIED): State.FAILED,
    (State.LEASED, Trigger.LEASE): State.LEASED,
    (State.LEASED, Trigger.LAST_LEASE_ENDED): State.IDLE,
    (State.LEASED, Trigger.DIED): State.FAILED,
    # An engine on its way out can still report what it was doing; it leaves all the same.
    (State.EVICTING, Trigger.LOADED): State.EVICTING,
    (State.EVICTING, Trigger.LOAD_FAILED): State.EVICTING,
    (State.EVICTING, Trigger.DIED): State.EVICTING,
    (State.EVICTING, Trigger.UNLOADED): State.ABSENT,
    (State.FAILED, Trigger.BOOK): State.LOADING,
}


FOLLOWING: Final[dict[State, dict[Trigger, State]]] = {
    state: {t: target for (s, t), target in TRANSITIONS.items() if s is state} for state in State
}
"""The same table by state: what each trigger leads to."""
