"""The events that the core takes. Times are arguments of `handle`; ids are the keeper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from budget.books.engines import Bookings, EngineSpec, ModelSpec, PlacementOption
from budget.settings import CoreSettings

Want = Literal["lease", "load", "pin"]


@dataclass(frozen=True, slots=True)
class Started:
    """The keeper is ready to carry out actions: pinned models load now."""


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client asks for an outcome: make this model resident, and lease, keep or pin it.

    `deadline` is an absolute time; `priority` None takes the model's own. `plan` names the declared
    uses of which this request is one; None: those under its client's own name. `preemptible`: its
    lease may be asked to yield. `persist`: what it pins stays pinned when its client is gone, until
    `unpin`. `owner`: the program that the client is a connection of, where that is known; its other
    clients' pins are its own.
    """

    request_id: str
    client_id: str
    model: str
    want: Want = "lease"
    priority: int | None = None
    deadline: float | None = None
    plan: str | None = None
    preemptible: bool = False
    persist: bool = False
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """A client withdraws a request that waits. Nothing happens when it waits no more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A client's connection ended: its requests are cancelled, its leases are back, its pins end."""

    client_id: str


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """A client gives a lease back. A lease's id is its request's."""

    request_id: str
    client_id: str


@dataclass(frozen=True, slots=True)
class LeaseTaken:
    """The keeper takes a lease back, from a client that does not answer, say; `error` tells it why.

    Answered by `Revoke`. A lease that is over is no error: nothing happens.
    """

    request_id: str
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseYielded:
    """A client gives a lease back that was asked for, and waits to have it again under its id."""

    request_id: str
    client_id: str


@dataclass(frozen=True, slots=True)
class LoadFinished:
    """An engine is ready. `bookings` are its bytes as measured, when they were."""

    engine_id: str
    generation: int
    bookings: Bookings | None = None


@dataclass(frozen=True, slots=True)
class LoadEndedBadly:
    """An engine could not be loaded and nothing of it is left. `error` is an error on the wire.

    `refused_device` is the one that was out of memory, where that is known.
    """

    engine_id: str
    generation: int
    error: Mapping[str, Any]
    out_of_memory: bool = False
    refused_device: str | None = None


@dataclass(frozen=True, slots=True)
class EngineGone:
    """A resident engine ended by itself and nothing of it is left."""

    engine_id: str
    generation: int
    error: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnloadFinished:
    """An engine that was told to unload is gone."""

    engine_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class EngineMeasured:
    """A resident engine was found to take these bytes."""

    engine_id: str
    generation: int
    bookings: Bookings


@dataclass(frozen=True, slots=True)
class EngineEstimated:
    """What an engine's placements take was corrected; counts from its next load on."""

    engine_id: str
    options: tuple[PlacementOption, ...]


@dataclass(frozen=True, slots=True)
class DeviceMeasured:
    """A device has room for this many bytes of engines in all, ours included.

    `free_bytes` is what is in use by no program there now, and `reserve_bytes` what should stay
    free. A figure that is not known is None: the ceiling stays as it is. While an engine loads or
    leaves there, the measurement is shown and not judged: part of the engine's bytes may count
    twice, or not at all. `asleep_bytes` are held by engines that are asleep; the limit is lower by
    them at once, also where the rest is not known.
    """

    device: str
    available_bytes: int | None
    free_bytes: int | None = None
    reserve_bytes: int = 0
    asleep_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StageFinished:
    """The staging of an engine's file ended, or was stopped, after it had read these bytes."""

    engine_id: str
    read_bytes: int


@dataclass(frozen=True, slots=True)
class HintGiven:
    """`release`: the model may leave now. `unload`: it leaves as soon as no request leases it.

    `unpin`: every pin of it ends, whatever made it; the configuration's until that is read anew.
    """

    kind: Literal["release", "unload", "unpin"]
    model: str


@dataclass(frozen=True, slots=True)
class UsesDeclared:
    """A client tells the order of its coming uses; an empty order withdraws them.

    `plan` names these declared uses among those of all clients; None: those under the client's own
    name. `any_order`: they are of work side by side, so that a use which is passed over comes later.
    """

    client_id: str
    models: tuple[str, ...]
    plan: str | None = None
    any_order: bool = False


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration changed. Engines with an id that stays are left as they are.

    `limits`: bytes by device; the devices themselves do not change while a keeper runs. `settings`:
    None leaves them as they are. `errors`: why a configured model cannot be run now, as an error on
    the wire, by its name; a request for such a model gets this instead of `UnknownModel`.
    """

    models: tuple[ModelSpec, ...]
    engines: tuple[EngineSpec, ...]
    limits: Mapping[str, int]
    settings: CoreSettings | None = None
    errors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimerDue:
    """The time of the last `SetTimer` has come."""


Event = (
    Started
    | RequestArrived
    | RequestCancelled
    | ClientGone
    | LeaseEnded
    | LeaseTaken
    | LeaseYielded
    | LoadFinished
    | LoadEndedBadly
    | EngineGone
    | UnloadFinished
    | EngineMeasured
    | EngineEstimated
    | DeviceMeasured
    | StageFinished
    | HintGiven
    | UsesDeclared
    | Reconfigured
    | TimerDue
)
