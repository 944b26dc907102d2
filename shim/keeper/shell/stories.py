"""What ended in the keeper, told as it ends: requests, loads, evictions, denials and deaths.

Made of the core's events and actions, and of what clients say of their requests. Nothing is made where
nothing listens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Reversible
from dataclasses import dataclass
from typing import Any, Final

from budget import actions as act
from budget import events as ev
from shim.keeper.shell.history import EvictStory, History, LoadStory

CLIENT_GONE: Final = "ClientGone"
"""The error of a request whose client was gone before it gave its lease back."""
_LARGEST: Final = 1e15


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One request that had a lease. Times are monotonic nanoseconds; what was not told is None.

    `first_token_ns` is the client's own, or computed from the engine's figures. `prompt_tokens` include the
    `cached_tokens`. `prompt_ms` and `predicted_ms` are the engine's.
    """

    request_id: str
    client_id: str
    model: str
    engine: str
    operation: str
    slot: int | None
    cold: bool
    arrived_ns: int
    granted_ns: int
    end_ns: int
    first_token_ns: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    error: str | None = None
    load_id: str | None = None
    waited_for: str = ""


@dataclass(frozen=True, slots=True)
class DenialStory:
    """A request that ended without a lease, and the type of its error. Times as of a request."""

    request_id: str
    client_id: str
    model: str
    arrived_ns: int
    end_ns: int
    error: str
    waited_for: str = ""


@dataclass(frozen=True, slots=True)
class DeathStory:
    """An engine that ended otherwise than by an unload, and the type of its error."""

    ns: int
    model: str
    error: str


Story = RequestStory | LoadStory | EvictStory | DenialStory | DeathStory
Listener = Callable[[Story], None]


class Stories:
    """Follows events and actions, and tells `listeners` what ended.

    Args:
        history: has the loads and the evictions.
        label: an engine's models, by its id.
        backend: what runs an engine, by its id.
    """

    def __init__(
        self, history: History, label: Callable[[str], str], backend: Callable[[str], str]
    ) -> None:
        self.listeners: list[Listener] = []
        self._history = history
        self._label = label
        self._backend = backend
        self._asked: dict[str, tuple[ev.RequestArrived, int]] = {}
        """The requests that wait, and when each arrived."""
        self._held: dict[str, act.Grant] = {}
        self._spent: dict[str, Mapping[str, Any]] = {}

    def saw(self, event: ev.Event, actions: list[act.Action]) -> None:
        """Follow what an event did."""
        if isinstance(event, ev.LeaseEnded):
            self._ended(event.request_id)
        elif isinstance(event, ev.RequestArrived):
            self._asked[event.request_id] = event, time.monotonic_ns()
        else:
            self._further(event)
        for action in actions:
            if isinstance(action, act.Grant):
                self._granted(action)
            elif isinstance(action, act.Deny):
                self._denied(action)
            elif isinstance(action, act.Revoke):
                self._ended(action.request_id, error=str(action.error.get("error")))

    def spent(self, lease: str, spent: Mapping[str, Any]) -> None:
        """Keep a client's report on a request, which ends now."""
        if lease in self._held:
            self._spent[lease] = spent

    def leave(self, listener: Listener) -> None:
        """Tell a listener no more; without any, what is under way is dropped."""
        if listener in self.listeners:
            self.listeners.remove(listener)
        if not self.listeners:
            self._asked.clear()
            self._held.clear()
            self._spent.clear()

    def _further(self, event: ev.Event) -> None:
        match event:
            case ev.RequestCancelled():
                self._asked.pop(event.request_id, None)
            case ev.ClientGone():
                self._client_gone(event.client_id)
            case ev.LoadFinished() | ev.LoadEndedBadly():
                self._tell_last(self._history.loads, f"{event.engine_id}/{event.generation}")
            case ev.UnloadFinished():
                self._tell_last(
                    self._history.evictions, f"{event.engine_id}/{event.generation}/end"
                )
            case ev.EngineGone():
                error = str(event.error.get("error"))
                self._tell(DeathStory(time.monotonic_ns(), self._label(event.engine_id), error))

    def _client_gone(self, client_id: str) -> None:
        for request_id in [
            r for r, (asked, _) in self._asked.items() if asked.client_id == client_id
        ]:
            del self._asked[request_id]
        for request_id in [r for r, grant in self._held.items() if grant.client_id == client_id]:
            self._ended(request_id, error=CLIENT_GONE)

    def _tell_last(self, ring: Reversible[LoadStory | EvictStory], wanted: str) -> None:
        for story in reversed(ring):
            if wanted == (story.load_id if isinstance(story, LoadStory) else story.evict_id):
                self._tell(story)
                return

    def _granted(self, grant: act.Grant) -> None:
        self._asked.pop(grant.request_id, None)
        if grant.slot is not None:
            # A lease that was yielded is granted again under its id: it began with the first grant.
            self._held.setdefault(grant.request_id, grant)

    def _denied(self, denial: act.Deny) -> None:
        error = str(denial.error.get("error"))
        asked, arrived_ns = self._asked.pop(denial.request_id, (None, 0))
        if denial.request_id in self._held:
            self._ended(denial.request_id, error=error)
        elif asked is not None:
            ids, now = (asked.request_id, asked.client_id, asked.model), time.monotonic_ns()
            waited_for = str(denial.error.get("facts", {}).get("waited_for", ""))
            self._tell(DenialStory(*ids, arrived_ns, now, error, waited_for))

    def _ended(self, request_id: str, *, error: str | None = None) -> None:
        grant = self._held.pop(request_id, None)
        spent = self._spent.pop(request_id, {})
        if grant is not None and self.listeners:
            self._tell(request_story(grant, self._backend(grant.engine_id), spent, error))

    def _tell(self, story: Story) -> None:
        for listener in self.listeners:
            listener(story)


def request_story(
    grant: act.Grant, backend: str, spent: Mapping[str, Any], error: str | None
) -> RequestStory:
    """The story of a request that ends now.

    Args:
        grant: its first grant.
        backend: what runs its engine.
        spent: what its client told; a client may tell anything.
        error: the type of its error, where the keeper ended it.
    """
    evaluated, cached = _count(spent, "prompt_n"), _count(spent, "cache_n")
    prompt_ms = _number(spent, "prompt_ms")
    arrived_ns, granted_ns = int(grant.arrived_at * 1e9), int(grant.granted_at * 1e9)
    end_ns, first_ns = time.monotonic_ns(), None
    first_ms = _number(spent, "first_ms")
    if first_ms is not None:
        first_ns = arrived_ns + int(first_ms * 1e6)
    elif prompt_ms is not None:
        first_ns = granted_ns + int(prompt_ms * 1e6)
    told = str(spent["error"]) if "error" in spent else None
    return RequestStory(
        request_id=grant.request_id,
        client_id=grant.client_id,
        model=grant.model,
        engine=backend,
        operation=str(spent.get("operation", "chat")),
        slot=grant.slot,
        cold=grant.cold,
        arrived_ns=arrived_ns,
        granted_ns=granted_ns,
        end_ns=end_ns,
        first_token_ns=None if first_ns is None else min(max(first_ns, granted_ns), end_ns),
        prompt_tokens=None if evaluated is None else evaluated + (cached or 0),
        cached_tokens=cached,
        output_tokens=_count(spent, "predicted_n"),
        prompt_ms=prompt_ms,
        predicted_ms=_number(spent, "predicted_ms"),
        error=error or told,
        load_id=f"{grant.engine_id}/{grant.generation}" if grant.cold else None,
        waited_for=grant.waited_for,
    )


def _number(spent: Mapping[str, Any], name: str) -> float | None:
    value = spent.get(name)
    sane = isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= _LARGEST
    return float(value) if sane and value is not None else None


def _count(spent: Mapping[str, Any], name: str) -> int | None:
    value = _number(spent, name)
    return None if value is None else int(value)
