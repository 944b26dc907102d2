"""How long each model stayed on a device, from its loads and evictions, in whatever order they come."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from traces import names
from traces.chrome.event_text import Events
from traces.recording.remembered import remember
from traces.text import Value


@dataclass(slots=True)
class _Stay:
    pid: int
    model: str
    load_id: str
    start: int


class Residencies:
    """Draws an asynchronous slice for each stay of a model on a device, once it is over."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._stays: OrderedDict[str, _Stay] = OrderedDict()
        self._left: OrderedDict[str, int] = OrderedDict()
        self._requests: OrderedDict[str, int] = OrderedDict()

    def loaded(self, pid: int, attributes: dict[str, Value], end: int) -> None:
        """A load is done: a stay begins."""
        load_id, device = str(attributes[names.LOAD_ID]), attributes[names.DEVICE]
        model = str(attributes.get(names.REQUEST_MODEL, ""))
        remember(self._stays, f"{load_id} {device}", _Stay(pid, model, load_id, end))

    def left(self, attributes: dict[str, Value], start: int) -> None:
        """An eviction begins: its stay ends."""
        evict_id, device = str(attributes[names.EVICT_ID]), attributes[names.DEVICE]
        remember(self._left, f"{evict_id.removesuffix(names.END_OF_LOAD)} {device}", start)

    def used(self, load_id: str) -> None:
        """A request was served by the engine of that load."""
        remember(self._requests, load_id, self._requests.get(load_id, 0) + 1)

    def finish(self, end: int) -> None:
        """Draw all stays; those that are not over last until `end`."""
        for key, stay in sorted(self._stays.items(), key=lambda item: item[1].start):
            until = max(stay.start, self._left.get(key, end))
            requests = self._requests.get(stay.load_id, 0)
            seconds = (until - stay.start) / 1e9
            plural = "" if requests == 1 else "s"
            title = f"{stay.model} resident {seconds:.1f} s, {requests} request{plural}"
            args: dict[str, Value] = {names.LOAD_ID: stay.load_id, names.REQUESTS: requests}
            name, times = f"resident {stay.model}", (stay.start, until)
            lane = self._events.asynchronous_lane(names.RESIDENCY, stay.pid, name, times)
            self._events.asynchronous(title, names.RESIDENCY, stay.pid, times, args, lane)
