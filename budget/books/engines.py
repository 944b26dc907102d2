"""What the core knows of an engine: its specification, and the record of its state and leases."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from budget.books.states import FOLLOWING, RESIDENT, TRANSITIONS, State, Trigger
from budget.errors import InternalError

PAST_LENGTH = 32
NO_TIMEOUT = -1.0
"""The keep_alive that never ends."""

Bookings = tuple[tuple[str, int], ...]
"""Bytes by device, sorted by device."""


@dataclass(frozen=True, slots=True)
class PlacementOption:
    """One way to place an engine. Lower tiers are preferred as long as they can ever fit.

    `load_seconds` is what loading it is expected to cost; `threads` how many cores it keeps busy
    while it generates, 0 where another device computes. `learned`: its bytes are those that an engine was
    found to take, and no estimate.
    """

    bookings: Bookings
    load_seconds: float
    tier: int = 0
    threads: int = 0
    learned: bool = False


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine that may be run: its placements in order of preference and its slots."""

    engine_id: str
    options: tuple[PlacementOption, ...]
    slots: int = 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A name that callers use. Entries with one `engine_id` share an engine.

    `keep_alive_s`: seconds an idle engine stays; 0 leaves at once, -1 has no time-out. `max_queue`:
    requests that may wait for it; None is the bound of all models.
    """

    name: str
    engine_id: str
    pinned: bool = False
    keep_alive_s: float = NO_TIMEOUT
    priority: int = 0
    max_queue: int | None = None


@dataclass(slots=True)
class Lease:
    """A running request's hold on a resident engine. Its id is its request's.

    It never changes once made. It is not frozen, because a frozen one takes five times as long to
    make.
    """

    request_id: str
    client_id: str
    model: str
    slot: int
    priority: int
    granted_at: float
    number: int = 0
    interrupted_s: float = 0.0
    """How long its request has waited since it first ran."""


class EngineRecord:
    """One engine's residency, leases and history. Only the core changes it."""

    __slots__ = (
        "bookings",
        "deaths",
        "demand",
        "draining_for",
        "engine_id",
        "failures",
        "generation",
        "idle_since",
        "immune_until",
        "keep_alive_s",
        "last_error",
        "last_used",
        "leases",
        "least_bytes",
        "leave_when_idle",
        "load_told",
        "loaded_at",
        "min_option",
        "option_index",
        "past",
        "pins",
        "released",
        "retired",
        "retry_at",
        "spec",
        "spec_ahead",
        "state",
        "unload_told",
        "used_since_load",
        "uses",
    )

    def __init__(self, spec: EngineSpec) -> None:
        self.specify(spec)
        self.spec_ahead: EngineSpec | None = None
        """What it is from its next load on, where that is not possible before."""
        self.engine_id = spec.engine_id
        """The engine's name in every event and action."""
        self.state = State.ABSENT
        self.generation = 0
        self.load_told = self.unload_told = 0
        """The last generations whose load and whose end the core has asked for in an action."""
        self.option_index = 0
        self.bookings: Bookings = ()
        self.leases: dict[str, Lease] = {}
        self.pins: set[str] = set()
        self.keep_alive_s = NO_TIMEOUT
        self.loaded_at = 0.0
        self.idle_since = 0.0
        self.last_used = 0.0
        self.uses = 0
        self.used_since_load = False
        self.failures = 0
        self.deaths = 0
        self.demand = 0
        self.retry_at = 0.0
        self.min_option = 0
        self.last_error: dict[str, object] | None = None
        self.released = False
        self.leave_when_idle = False
        self.retired = False
        self.draining_for: str | None = None
        self.immune_until = 0.0
        self.past: deque[tuple[float, State, Trigger, str]] = deque(maxlen=PAST_LENGTH)

    def specify(self, spec: EngineSpec) -> None:
        """Take over what the engine may be; `least_bytes` is what each placement takes at least."""
        self.spec = spec
        self.least_bytes = min([o.bookings[0][1] for o in spec.options if o.bookings], default=0)

    @property
    def pinned(self) -> bool:
        """Whether eviction may not touch it."""
        return bool(self.pins)

    @property
    def resident(self) -> bool:
        """Whether it can serve now."""
        return self.state in RESIDENT

    @property
    def failures_in_row(self) -> int:
        """Failures in a row: loads that failed, or engines that died before they served a request."""
        return max(self.failures, self.deaths)

    @property
    def abandonable(self) -> bool:
        """Whether it is loading and no request waits for it any more."""
        return self.state is State.LOADING and not self.demand and not self.pins

    @property
    def option(self) -> PlacementOption:
        """The placement in use, or last used."""
        return self.spec.options[self.option_index]

    @property
    def open(self) -> bool:
        """Whether a request may have a slot at once: no other waits for it or for its bytes."""
        return (
            self.state in RESIDENT
            and not self.demand
            and self.draining_for is None
            and not self.leave_when_idle
            and not self.retired
            and len(self.leases) < self.spec.slots
        )

    @property
    def whereabouts(self) -> Bookings:
        """Its bookings, or those of its only option; empty where that is not decided yet."""
        if self.bookings or len(self.spec.options) != 1:
            return self.bookings
        return self.spec.options[0].bookings

    def free_slot(self) -> int | None:
        """The lowest slot without a lease, or None when all are taken."""
        if len(self.leases) >= self.spec.slots:
            return None
        if not self.leases:
            return 0
        taken = {lease.slot for lease in self.leases.values()}
        return next(slot for slot in range(self.spec.slots) if slot not in taken)

    def must_be_able_to(self, trigger: Trigger) -> None:
        """Raise `InternalError` with the engine's last events unless the transition table has the pair."""
        if trigger not in FOLLOWING[self.state]:
            raise self._impossible(trigger)

    def _impossible(self, trigger: Trigger) -> InternalError:
        return InternalError(
            f"{self.engine_id}: {trigger.name} is impossible while {self.state.name}.",
            hint="Last events, oldest first: " + self.tell(),
            engine=self.engine_id,
            state=self.state.name,
            trigger=trigger.name,
        )

    def move(self, trigger: Trigger, now: float, detail: str = "") -> State:
        """Take one row of the transition table; returns the new state.

        Raises:
            InternalError: the pair is not in the table; the message carries the engine's last
            events.
        """
        target = FOLLOWING[self.state].get(trigger)
        if target is None:
            raise self._impossible(trigger)
        self.past.append((now, self.state, trigger, detail))
        self.state = target
        return target

    def tell(self) -> str:
        """The last events of this engine, oldest first, one line."""
        return "; ".join(
            f"{at:.6f} {state.name}-{trigger.name}->{TRANSITIONS[state, trigger].name} {detail}".rstrip()
            for at, state, trigger, detail in self.past
        )

    def __repr__(self) -> str:
        return (
            f"<{self.engine_id} {self.state.name} g{self.generation} leases={len(self.leases)}"
            f"{' pinned' if self.pinned else ''} {dict(self.bookings)}>"
        )
