"""The view of a run's spans as a Chrome Trace file that reads like a manifest in Perfetto.

The format is the Trace Event Format (JSON array form). What Perfetto's importer makes of it was measured
with its own trace processor (tests/traces/); the rules that follow from that: slices of a lane nest
exactly; times are relative to a base near the run's start, since decimals of microseconds since the epoch
do not fit a double; a flow's ends lie inside slices; async ids are local to their process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from traces import names
from traces.chrome.lanes import LaneTable
from traces.records import CounterSample
from traces.text import microseconds, quote, quote_args

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

MARGIN_NS = 3_600 * 1_000_000_000
"""How long before the run a load may have started; the file's time 0. Earlier times are drawn at 0."""

_CHILDREN = frozenset(
    {names.ADMIT, names.PROMPT_EVALUATION, names.GENERATE, names.WORK, names.ITEMS}
)
_HIDDEN = frozenset({names.LANE})
_REMEMBERED = 4096

_NOT_ADMITTED = (97, "not admitted")
_ANY_SLOT = (96, "requests")
_LAST_SLOT = 95


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a slice lies in the file: its lane and its times in nanoseconds of the file."""

    pid: int
    tid: int
    start: int
    end: int


class ChromeView(SpanProcessor):
    """Turns every ended span into events of a Chrome Trace file.

    Args:
        write: takes a batch of events, each a JSON object as text.
        base_ns: the epoch time, in nanoseconds, that is 0 in the file.
        home: name of the process that holds the run's own spans.
    """

    def __init__(self, write: Callable[[list[str]], None], *, base_ns: int, home: str) -> None:
        self._write = write
        self._base_ns = base_ns
        self._home = home
        self._lock = threading.RLock()
        self._batch: list[str] = []
        self._lanes = LaneTable(self._name_process, self._name_lane)
        self._placed: OrderedDict[int, Placed] = OrderedDict()
        self._loads: dict[str, Placed] = {}
        self._waiting: dict[str, list[Placed]] = {}
        self._models: dict[str, set[str]] = {}
        self._ids = 0
        self._leased: dict[object, list[int]] = {}

    # -- spans ------------------------------------------------------------------------------------

    def on_end(self, span: ReadableSpan) -> None:
        """Add the span's events to the batch; `flush` writes it."""
        with self._lock:
            attributes = span.attributes or {}
            start, end = self._times(span.start_time, span.end_time)
            match span.name:
                case names.REQUEST if names.REQUEST_ID in attributes:
                    self._request(span, attributes, start, end)
                case names.QUEUE if (request := self._parent(span)) is not None:
                    self._queue(attributes, request.pid, start, end)
                case names.MODEL_LOAD | names.EVICT if names.DEVICE in attributes:
                    self._device(span, attributes, start, end)
                case name if name in _CHILDREN and (parent := self._parent(span)) is not None:
                    self._child(span.name, attributes, parent, start, end)
                case _:
                    self._own(span, attributes, start, end)

    def flush(self) -> None:
        """Write the events gathered since the last call."""
        with self._lock:
            batch, self._batch = self._batch, []
            self._write(batch)

    def _times(self, start: int | None, end: int | None) -> tuple[int, int]:
        first = max(0, (start or 0) - self._base_ns)
        return first, max(first, (end or 0) - self._base_ns)

    def _parent(self, span: ReadableSpan) -> Placed | None:
        return self._placed.get(span.parent.span_id) if span.parent else None

    def _remember(self, span: ReadableSpan, placed: Placed) -> None:
        context: SpanContext | None = span.get_span_context()
        if context is None:
            return
        self._placed[context.span_id] = placed
        if len(self._placed) > _REMEMBERED:
            self._placed.popitem(last=False)

    def _request(
        self, span: ReadableSpan, attributes: Mapping[str, object], start: int, end: int
    ) -> None:
        granted = next((e.timestamp for e in span.events if e.name == names.GRANTED), None)
        if granted is not None:
            start = min(max(start, granted - self._base_ns), end)
        pid = self._engine_pid(attributes)
        order, title = _slot_lane(attributes.get(names.SLOT), admitted=granted is not None)
        # At least 1 ns: a slice without a length cannot hold the end of a flow.
        end = max(end, start + 1)
        placed = Placed(pid, self._lanes.group(pid, order, title).place(start, end), start, end)
        self._remember(span, placed)
        self._slice(names.REQUEST, names.REQUEST, placed, attributes)
        for key in (names.WAITED_FOR_LOAD, names.PREFETCHED_BY):
            if load_id := attributes.get(key):
                self._flow_into(str(load_id), placed)

    def _child(
        self, name: str, attributes: Mapping[str, object], parent: Placed, start: int, end: int
    ) -> None:
        # A flow ends at the parent's first nanosecond and binds to the innermost slice there.
        first = min(parent.start + 1, parent.end)
        start = min(max(start, first), parent.end)
        end = min(max(end, start), parent.end)
        self._slice(name, name, Placed(parent.pid, parent.tid, start, end), attributes)

    def _queue(self, attributes: Mapping[str, object], pid: int, start: int, end: int) -> None:
        common = (
            f'"cat":"{names.QUEUE}","name":"{names.QUEUE}","pid":{pid},'
            f'"id2":{{"local":"{self._next_id()}"}}'
        )
        args = quote_args(attributes)
        self._batch.append(f'{{"ph":"b",{common},"ts":{microseconds(start)},"args":{args}}}')
        self._batch.append(f'{{"ph":"e",{common},"ts":{microseconds(end)}}}')

    def _device(
        self, span: ReadableSpan, attributes: Mapping[str, object], start: int, end: int
    ) -> None:
        pid = self._lanes.pid(names.device_lanes(str(attributes[names.DEVICE])))
        end = max(end, start + 1)
        tid = self._lanes.group(pid, 0, "loads and evictions").place(start, end)
        placed = Placed(pid, tid, start, end)
        self._remember(span, placed)
        title = f"{span.name} {attributes.get(names.REQUEST_MODEL, '')}".rstrip()
        self._slice(title, span.name, placed, attributes)
        load_id = attributes.get(names.LOAD_ID)
        if load_id is not None and str(load_id) not in self._loads:
            self._loads[str(load_id)] = placed
            for target in self._waiting.pop(str(load_id), ()):
                self._flow(placed, target)

    def _own(
        self, span: ReadableSpan, attributes: Mapping[str, object], start: int, end: int
    ) -> None:
        pid = self._lanes.pid(self._home)
        lane = attributes.get(names.LANE)
        group = self._lanes.group(pid, 1, "stages")
        tid = None
        if span.name == names.RUN and span.parent is None:
            tid = self._lanes.group(pid, 0, "run").place(start, end)
        elif isinstance(lane, int):
            tid = group.place_on(lane, start, end)
        if tid is None:
            tid = self._lanes.group(pid, 2, "other spans").place(start, end)
        category = names.RUN if span.parent is None else names.STAGE
        self._slice(span.name, category, Placed(pid, tid, start, end), attributes)

    # -- lanes of the run's own spans -------------------------------------------------------------

    def lease_lane(self, owner: object, start_ns: int) -> int:
        """The lane for a span that `owner` (a thread or a task) opens now; give it back when it ends.

        Spans of one owner share a lane, so that they nest; two owners never share one at one time.
        """
        with self._lock:
            held = self._leased.get(owner)
            if held is None:
                taken = {lane for lane, _ in self._leased.values()}
                group = self._lanes.group(self._lanes.pid(self._home), 1, "stages")
                held = [group.free_lane(max(0, start_ns - self._base_ns), taken), 0]
                self._leased[owner] = held
            held[1] += 1
            return held[0]

    def return_lane(self, owner: object) -> None:
        """The span that `lease_lane` was called for has ended."""
        with self._lock:
            held = self._leased[owner]
            held[1] -= 1
            if held[1] == 0:
                del self._leased[owner]

    # -- counters ---------------------------------------------------------------------------------

    def counter(self, sample: CounterSample, epoch_ns: int) -> None:
        """Add one sample of a device's books to the batch."""
        with self._lock:
            pid = self._lanes.pid(names.device_lanes(sample.device))
            known = self._models.setdefault(sample.device, set())
            known.update(sample.resident)
            resident = {model: int(sample.resident.get(model, 0)) for model in sorted(known)}
            free = {"free": int(sample.free_bytes), "limit": int(sample.limit_bytes)}
            ts = microseconds(max(0, epoch_ns - self._base_ns))
            for name, values in ((names.RESIDENT_BYTES, resident), (names.DEVICE_BYTES, free)):
                if values:
                    self._batch.append(
                        f'{{"ph":"C","name":"{name}","pid":{pid},"ts":{ts},'
                        f'"args":{quote_args(values)}}}'
                    )

    # -- events -----------------------------------------------------------------------------------

    def _engine_pid(self, attributes: Mapping[str, object]) -> int:
        return self._lanes.pid(
            names.engine_lanes(
                str(attributes.get(names.PROVIDER, "")),
                str(attributes.get(names.REQUEST_MODEL, "")),
                remote=bool(attributes.get(names.REMOTE)),
            )
        )

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _slice(
        self, title: str, category: str, at: Placed, attributes: Mapping[str, object]
    ) -> None:
        visible = {key: value for key, value in attributes.items() if key not in _HIDDEN}
        self._batch.append(
            f'{{"ph":"X","name":{quote(title)},"cat":{quote(category)},"pid":{at.pid},"tid":{at.tid},'
            f'"ts":{microseconds(at.start)},"dur":{microseconds(at.end - at.start)},'
            f'"args":{quote_args(visible)}}}'
        )

    def _flow_into(self, load_id: str, target: Placed) -> None:
        source = self._loads.get(load_id)
        if source is None:
            self._waiting.setdefault(load_id, []).append(target)
        else:
            self._flow(source, target)

    def _flow(self, source: Placed, target: Placed) -> None:
        # Perfetto drops, without a word, an arrow that ends outside of its slice or points back in
        # time. A slice's end is outside of it: the last nanosecond is the latest that binds.
        start = max(source.start, min(source.end - 1, target.start))
        end = max(start, target.start)
        if end >= target.end:
            return
        common = f'"cat":"{names.FLOW}","name":"{names.LOAD_FLOW}","id":{self._next_id()}'
        self._batch.append(
            f'{{"ph":"s",{common},"pid":{source.pid},"tid":{source.tid},"ts":{microseconds(start)}}}'
        )
        self._batch.append(
            f'{{"ph":"f","bp":"e",{common},"pid":{target.pid},"tid":{target.tid},'
            f'"ts":{microseconds(end)}}}'
        )

    def _name_process(self, pid: int, name: str) -> None:
        # Without a tid: with one, an empty lane of that number appears.
        self._batch.append(
            f'{{"ph":"M","name":"process_name","pid":{pid},"args":{{"name":{quote(name)}}}}}'
        )

    def _name_lane(self, pid: int, tid: int, name: str) -> None:
        self._batch.append(
            f'{{"ph":"M","name":"thread_name","pid":{pid},"tid":{tid},'
            f'"args":{{"name":{quote(name)}}}}}'
        )


def _slot_lane(slot: object, *, admitted: bool) -> tuple[int, str]:
    if not admitted:
        return _NOT_ADMITTED
    if not isinstance(slot, int):
        return _ANY_SLOT
    if slot > _LAST_SLOT:
        return _LAST_SLOT, f"slot {_LAST_SLOT} and above"
    return max(slot, 0), f"slot {slot}"


def view_base_ns(started_epoch_ns: int) -> int:
    """The epoch time that is 0 in the file of a run that started then."""
    return max(0, started_epoch_ns - MARGIN_NS)
