"""The events of the Trace Event Format as text, gathered until they are written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from traces import names
from traces.text import Value, microseconds, quote, quote_clean, quote_known


class Placed(NamedTuple):
    """Where a slice lies in the file: its lane and its times in nanoseconds of the file."""

    pid: int
    tid: int
    start: int
    end: int


class Events:
    """Events of one file, in the order in which they are added. Times are nanoseconds of the file.

    `after` is the highest number of an arrow that is taken.
    """

    def __init__(self, after: int = 0) -> None:
        self._batch: list[str] = []
        self.gathered = 0
        """Characters of the events since the last `take`."""
        self._async_lanes: dict[tuple[int, str], dict[int, int]] = {}
        self._next_id = itertools.count(after + 1).__next__

    def take(self) -> list[str]:
        """The events since the last call."""
        batch, self._batch, self.gathered = self._batch, [], 0
        return batch

    def _put(self, event: str) -> None:
        self._batch.append(event)
        self.gathered += len(event)

    def slice(self, title: str, category: str, at: Placed, attributes: Mapping[str, Value]) -> None:
        """A slice on a lane."""
        self._put(
            f'{{"ph":"X","name":{quote(title)},"cat":{quote_known(category)},"pid":{at.pid},"tid":{at.tid},'
            f'"ts":{microseconds(at.start)},"dur":{microseconds(at.end - at.start)},'
            f'"args":{quote_clean(attributes)}}}'
        )

    def asynchronous(
        self,
        title: str,
        category: str,
        pid: int,
        times: tuple[int, int],
        args: Mapping[str, Value],
        lane: int | None = None,
    ) -> None:
        """A slice that may overlap others of its kind, unless they share a `lane`."""
        number = self._next_id() if lane is None else lane
        common = (
            f'"cat":"{category}","name":{quote(title)},"pid":{pid},"id2":{{"local":"{number}"}}'
        )
        start, end = map(microseconds, times)
        self._put(f'{{"ph":"b",{common},"ts":{start},"args":{quote_clean(args)}}}')
        self._put(f'{{"ph":"e",{common},"ts":{end}}}')

    def asynchronous_lane(self, category: str, pid: int, name: str, times: tuple[int, int]) -> int:
        """A lane of that name which is free at that time; times come in order.

        Perfetto names such a lane after its first slice, so it gets one of no length.
        """
        start, end = times
        lanes = self._async_lanes.setdefault((pid, name), {})
        for lane, busy_until in lanes.items():
            if busy_until <= start:
                lanes[lane] = end
                return lane
        lane = self._next_id()
        lanes[lane] = end
        self.asynchronous(name, category, pid, (start, start), {}, lane)
        return lane

    def value(self, name: str, pid: int, ns: int, what: str, value: float) -> None:
        """The value of one counter, whose name is `name` and `what` together."""
        self._put(
            f'{{"ph":"C","name":"{name}","pid":{pid},"ts":{microseconds(ns)},'
            f'"args":{{{quote_known(what)}:{value!r}}}}}'
        )

    def counter(self, name: str, pid: int, ns: int, values: Mapping[str, Value]) -> None:
        """The values of counters that share the first part of their names."""
        self._put(
            f'{{"ph":"C","name":"{name}","pid":{pid},"ts":{microseconds(ns)},'
            f'"args":{quote_clean(values)}}}'
        )

    def arrow(self, name: str, source: Placed, target: Placed) -> None:
        """An arrow from a slice to another one, if Perfetto can draw it."""
        # Perfetto drops, without a word, an arrow that ends outside of its slice or points back in
        # time. It binds each end to the slice that was opened last, so the source's begin is what
        # binds to the source and not to a part of it; the arrow is drawn from the source's end.
        start = source.start
        end = max(start, target.start)
        if end >= target.end:
            return
        common = f'"cat":"{names.FLOW}","name":"{name}","id":{self._next_id()}'
        self._put(
            f'{{"ph":"s",{common},"pid":{source.pid},"tid":{source.tid},"ts":{microseconds(start)}}}'
        )
        self._put(
            f'{{"ph":"f","bp":"e",{common},"pid":{target.pid},"tid":{target.tid},'
            f'"ts":{microseconds(end)}}}'
        )

    def name_process(self, pid: int, name: str) -> None:
        """What a group of lanes is called."""
        # Without a tid: with one, an empty lane of that number appears.
        self._put(f'{{"ph":"M","name":"process_name","pid":{pid},"args":{{"name":{quote(name)}}}}}')

    def name_lane(self, pid: int, tid: int, name: str) -> None:
        """What a lane is called."""
        self._put(
            f'{{"ph":"M","name":"thread_name","pid":{pid},"tid":{tid},'
            f'"args":{{"name":{quote(name)}}}}}'
        )
