"""What the core asks for. The keeper's shell carries actions out and reports back with events.

Actions and records never change once made. Decision records are not frozen all the same, because a
frozen one takes five times as long to make, and there is one for every eviction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budget.books.engines import Bookings


@dataclass(slots=True)
class EvictionCandidate:
    """One engine that eviction considered: what losing it costs, and the bytes it frees.

    `loss` is in the policy's own unit; an engine that was released by hint has 0. A candidate never
    changes once made. It is not frozen, because many are weighed for every eviction, and frozen
    ones take five times as long to make.
    """

    engine_id: str
    loss: float
    bookings: Bookings


@dataclass(slots=True)
class DecisionRecord:
    """Why bytes changed hands. The log line, the trace and `keepwarm ps` all read this.

    `victims` leave now; `draining` leave when their leases end, and get no new ones. `followed`:
    which of its predictors the policy followed, in words; empty where it has one only.
    """

    number: int
    at: float
    wanted: str
    reason: str
    policy: str
    requested: Bookings
    free: Bookings
    candidates: tuple[EvictionCandidate, ...] = ()
    victims: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    followed: str = ""


@dataclass(frozen=True, slots=True)
class Prepare:
    """An engine's bytes are leaving others and promised to it: what its start needs before may begin.

    No answer is expected. `StartLoad` follows, or the promise is withdrawn and the preparation was
    in vain.
    """

    engine_id: str
    option_index: int


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Start an engine at one of its options. Its bytes are booked. Answered by a load event."""

    engine_id: str
    generation: int
    option_index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """End an engine. Answered by `UnloadFinished`, always. `abandon`: it was still loading."""

    engine_id: str
    generation: int
    reason: str
    abandon: bool = False


@dataclass(frozen=True, slots=True)
class StageFile:
    """Read an engine's file into the page cache, slowly. Answered by `StageFinished`, always."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class StopStaging:
    """End a staging that is under way; its `StageFinished` follows."""

    engine_id: str


@dataclass(slots=True)
class Grant:
    """A request has its outcome. For want `lease` the caller holds `slot` until it ends the lease.

    `cold`: the request waited for a load that happened after its arrival. `waited_for`: what it had to
    wait for when it arrived, in words; empty where it did not wait. A grant never changes once made. It
    is not frozen, because one is made for every request, and a frozen one takes five times as long to
    make.
    """

    request_id: str
    client_id: str
    model: str
    engine_id: str
    generation: int
    slot: int | None
    cold: bool
    arrived_at: float
    granted_at: float
    waited_for: str = ""


@dataclass(frozen=True, slots=True)
class Deny:
    """A request ends without its outcome. `error` is an error on the wire."""

    request_id: str
    client_id: str
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Revoke:
    """A lease is over because its engine died, or because the keeper took it back."""

    request_id: str
    client_id: str
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AskYield:
    """A lease is wanted for a request of higher priority. Asked once; the holder may decline.

    Answered by `LeaseYielded`, or by the end of the lease. `wanted` is the engine it is for.
    """

    request_id: str
    client_id: str
    wanted: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `TimerDue` at this time; replaces the timer set before."""

    at: float


@dataclass(slots=True)
class Record:
    """A decision was made; keep it and show it."""

    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class Alert:
    """A device went over its limit, or came back (`over` False)."""

    device: str
    over: bool
    reserved_bytes: int
    ceiling_bytes: int


@dataclass(frozen=True, slots=True)
class LowMemory:
    """A device has less free than its reserve, or again enough (`low` False)."""

    device: str
    low: bool
    free_bytes: int
    reserve_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something failed inside the core, which is a bug of keepwarm. The event took effect all the same.

    `where`: the part that failed. `imbalances`: what did not balance afterwards and was put right.
    """

    where: str
    error: Exception
    imbalances: tuple[str, ...] = ()


Action = (
    Prepare
    | StartLoad
    | Unload
    | StageFile
    | StopStaging
    | Grant
    | Deny
    | Revoke
    | AskYield
    | SetTimer
    | Record
    | Alert
    | LowMemory
    | Fault
)
