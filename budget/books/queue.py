"""Requests that wait, by engine, in the order in which they are to be served."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from budget.events import Want

Rank = tuple[int, int, int]
"""Smaller is served first: aged requests in the order they came, then by priority, then by arrival."""


@dataclass(slots=True)
class Waiting:
    """A request that has been admitted to the queue and has no outcome yet."""

    request_id: str
    client_id: str
    model: str
    engine_id: str
    want: Want
    priority: int
    deadline: float | None
    arrived_at: float
    number: int
    seen_generation: int = -1
    """The generation of the engine that was resident when the request arrived; -1 when none was."""
    preemptible: bool = False
    persist: bool = False
    """Whether what it pins stays pinned without its client."""
    owner: str | None = None
    interrupted: bool = False
    """Whether it ran already and yielded; `arrived_at` is then when it did."""
    interrupted_s: float = 0.0
    """How long it has waited since it first ran, before this wait."""
    waited_for: str = ""
    """What it had to wait for when it arrived, in words."""

    def rank(self, now: float, max_wait_s: float) -> Rank:
        """Its place among all that wait now."""
        if self.aged(now, max_wait_s):
            return (0, 0, self.number)
        return (1, -self.priority, self.number)

    def aged(self, now: float, max_wait_s: float) -> bool:
        """Whether it has waited so long that nothing may pass it any more.

        Compared as a sum, as the timer that wakes the core is computed, so that both agree to the
        bit.
        """
        return now >= self.arrived_at + max_wait_s


class WaitList:
    """The requests that wait for one engine."""

    __slots__ = ("_by_arrival", "_interrupted", "_ordered")

    def __init__(self) -> None:
        self._by_arrival: dict[str, Waiting] = {}
        self._ordered: list[tuple[int, int, Waiting]] = []
        self._interrupted = 0

    def __len__(self) -> int:
        return len(self._by_arrival)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._by_arrival.values())

    def add(self, request: Waiting) -> None:
        """Take a request in; one that comes from another list keeps its place by number."""
        self._interrupted += request.interrupted
        last = next(reversed(self._by_arrival.values()), None)
        self._by_arrival[request.request_id] = request
        if last is not None and last.number > request.number:
            in_order = sorted(self._by_arrival.values(), key=lambda r: r.number)
            self._by_arrival = {r.request_id: r for r in in_order}
        insort(self._ordered, (-request.priority, request.number, request))

    def remove(self, request: Waiting) -> None:
        """Take a request out."""
        self._interrupted -= request.interrupted
        del self._by_arrival[request.request_id]
        self._ordered.remove((-request.priority, request.number, request))

    def head(self, now: float, max_wait_s: float) -> Waiting:
        """The request to serve next: the oldest if it has aged, else the one of highest priority."""
        oldest = next(iter(self._by_arrival.values()))
        if self._interrupted and not oldest.aged(now, max_wait_s):
            # The numbers of those that ran already are older than their waits.
            aged = (r for r in self._by_arrival.values() if r.aged(now, max_wait_s))
            oldest = next(aged, oldest)
        return oldest if oldest.aged(now, max_wait_s) else self._ordered[0][2]

    def priorities(self, want: Want | None, most: int) -> list[int]:
        """The highest priorities that wait (for that want), in order, at most so many."""
        found: list[int] = []
        for _, _, request in self._ordered:
            if len(found) == most:
                break
            if want is None or request.want == want:
                found.append(request.priority)
        return found


class Queue:
    """Every request that waits, by id and by engine."""

    def __init__(self) -> None:
        self.by_id: dict[str, Waiting] = {}
        """To be read; the same object for good."""
        self._by_engine: dict[str, WaitList] = {}
        self.aside: dict[str, Waiting] = {}
        """Those that are to pin a model beside pins of other clients, which must end first; to be read.

        They are in no list of an engine: no request waits behind them, and no bytes are sought for
        them.
        """

    def __len__(self) -> int:
        return len(self.by_id)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self.by_id.values()))

    def __contains__(self, request_id: object) -> bool:
        return request_id in self.by_id

    def get(self, request_id: str) -> Waiting | None:
        """The waiting request of that id, or None."""
        return self.by_id.get(request_id)

    def of(self, engine_id: str) -> WaitList | None:
        """The requests that wait for an engine; None rather than an empty list."""
        return self._by_engine.get(engine_id)

    def engines(self) -> list[str]:
        """The engines that requests wait for."""
        return list(self._by_engine)

    def add(self, request: Waiting, *, aside: bool = False) -> None:
        """Append a request to its engine's list, or set it aside."""
        self.by_id[request.request_id] = request
        if aside:
            self.aside[request.request_id] = request
        else:
            self._by_engine.setdefault(request.engine_id, WaitList()).add(request)

    def enlist(self, request: Waiting) -> None:
        """Let a request that was set aside wait in its engine's list from now on, by its number."""
        del self.aside[request.request_id]
        self._by_engine.setdefault(request.engine_id, WaitList()).add(request)

    def remove(self, request: Waiting) -> None:
        """Take a request out. Last of all it is not known any more: until then it waits."""
        self._unlist(request)
        del self.by_id[request.request_id]

    def move(self, request: Waiting, engine_id: str) -> None:
        """Let a request wait for another engine, at the place of its number."""
        if request.request_id in self.aside:
            request.engine_id = engine_id
            return
        self._unlist(request)
        request.engine_id = engine_id
        self._by_engine.setdefault(engine_id, WaitList()).add(request)

    def _unlist(self, request: Waiting) -> None:
        if self.aside.pop(request.request_id, None) is not None:
            return
        waits = self._by_engine[request.engine_id]
        waits.remove(request)
        if not waits:
            del self._by_engine[request.engine_id]

    def rebuild(self) -> None:
        """Make the lists by engine anew from the requests."""
        self._by_engine.clear()
        for request_id in self.aside.keys() - self.by_id.keys():
            del self.aside[request_id]
        for request in sorted(self.by_id.values(), key=lambda r: r.number):
            if request.request_id in self.aside:
                continue
            self._by_engine.setdefault(request.engine_id, WaitList()).add(request)
