"""Arrows between slices that are recorded in any order: each waits until both of its ends are there."""

from __future__ import annotations

from collections import OrderedDict, deque

from traces import names
from traces.chrome.event_text import Events, Placed
from traces.recording.remembered import REMEMBERED, remember


class Arrows:
    """Draws arrows into `events`. An end is a slice with a key, such as a load with its id."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._ends: OrderedDict[str, Placed] = OrderedDict()
        self._waiting: OrderedDict[str, deque[tuple[str, Placed, bool]]] = OrderedDict()
        self._last: OrderedDict[str, Placed] = OrderedDict()

    def end(self, key: str, placed: Placed) -> None:
        """A slice that arrows lead from or to; of several with one key the first."""
        if key in self._ends:
            return
        remember(self._ends, key, placed)
        for name, other, leads_here in self._waiting.pop(key, ()):
            self._draw(name, placed, other, leads_here)

    def out_of(self, key: str, name: str, target: Placed) -> None:
        """An arrow from the slice with that key."""
        self._ask(key, name, target, leads_there=False)

    def into(self, key: str, name: str, source: Placed) -> None:
        """An arrow to the slice with that key."""
        self._ask(key, name, source, leads_there=True)

    def chain(self, key: str, placed: Placed) -> None:
        """An arrow from the slice that was last in this chain, which this one is now."""
        before = self._last.pop(key, None)
        if before is not None:
            self._events.arrow(names.NEXT_FLOW, before, placed)
        remember(self._last, key, placed)

    def _ask(self, key: str, name: str, other: Placed, *, leads_there: bool) -> None:
        end = self._ends.get(key)
        if end is not None:
            self._draw(name, end, other, leads_there)
            return
        if key not in self._waiting:
            remember(self._waiting, key, deque(maxlen=REMEMBERED))
        self._waiting[key].append((name, other, leads_there))

    def _draw(self, name: str, end: Placed, other: Placed, leads_there: bool) -> None:  # noqa: FBT001
        source, target = (other, end) if leads_there else (end, other)
        self._events.arrow(name, source, target)
