"""The view of a run's spans as a Chrome Trace file that reads like a manifest in Perfetto.

The format is the Trace Event Format (JSON array form). What Perfetto's importer makes of it was measured
with its own trace processor (tests/traces/); the rules that follow from that: slices of a lane nest
exactly; times are relative to a base near the run's start, since decimals of microseconds since the epoch
do not fit a double; a flow's ends lie inside slices; async ids are local to their process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from traces import names
from traces.chrome.arrows import Arrows
from traces.chrome.event_text import Events, Placed
from traces.chrome.gauges import Gauge
from traces.chrome.lanes import LaneTable
from traces.chrome.residencies import Residencies
from traces.chrome.titles import title_of
from traces.processes.part_lines import PartOwner
from traces.recording.remembered import remember
from traces.records import CounterSample
from traces.span_data import SpanData
from traces.text import Value, clean

MARGIN_NS = 3_600 * 1_000_000_000
"""How long before the run a load may have started; the file's time 0. Earlier times are drawn at 0."""

GATHERED: Final = 8 * 1024 * 1024
"""Characters of events that are gathered before they are written, whatever comes in one batch."""

_CHILDREN: Final = frozenset(
    {
        names.ADMIT,
        names.PROMPT_EVALUATION,
        names.GENERATE,
        names.WORK,
        names.ITEMS,
        names.SPAWN,
        names.HEADER,
        names.WEIGHTS,
        names.BUFFERS,
        names.RESTORE_KV,
        names.SAVE_KV,
        names.END_PROCESS,
    }
)
_INCIDENTS: Final = frozenset(
    {names.DENIED, names.DIED, names.LOAD_FAILED, names.CORRECTED, names.PREEMPTED, names.RESUMED}
)
_LANES: Final = {names.MODEL_LOAD: 0, names.EVICT: 0, names.READ_AHEAD: 1}
_DEVICE_LANES: Final = ("loads and evictions", "read ahead", "events")
_UNSHOWN: Final = frozenset({names.SERVED_BY_LOAD, names.CHAIN})
_WAITING: Final = (98, "waits for a load")
_NOT_ADMITTED = (97, "not admitted")
_ANY_SLOT = (96, "requests")
_LAST_SLOT = 95


class ChromeView:
    """Turns finished spans into events of a Chrome Trace file. One thread at a time calls it.

    Args:
        write: takes a batch of events, each a JSON object as text.
        base_ns: the epoch time, in nanoseconds, that is 0 in the file.
        home: name of the process that holds the run's own spans.
        before: the view of the run's last file; spans that are open now keep lanes of their own.
        after: the highest numbers of a group and of an arrow that are in the file already.
    """

    def __init__(
        self,
        write: Callable[[list[str]], None],
        *,
        base_ns: int,
        home: str,
        before: ChromeView | None = None,
        after: tuple[int, int] = (0, 0),
    ) -> None:
        self._write = write
        self._base_ns = base_ns
        self._home = home
        self._events = Events(after[1])
        self._arrows = Arrows(self._events)
        self._residencies = Residencies(self._events)
        self._lanes = LaneTable(self._events.name_process, self._events.name_lane, after[0])
        self._placed: OrderedDict[int, Placed] = OrderedDict()
        self._gauges: dict[tuple[int, str], Gauge] = {}
        self._models: dict[str, set[str]] = {}
        self._leased: dict[Hashable, list[int]] = {}
        if before is not None:
            for owner, (_, depth) in before._leased.items():
                self._leased[owner] = [self._free_lane(owner, base_ns), depth]

    # -- spans ------------------------------------------------------------------------------------

    def add(self, span: SpanData) -> None:
        """Add the span's events to the batch; `flush` writes it, and so does a batch that is long."""
        attributes = span.attributes
        start = max(0, span.start_ns - self._base_ns)
        end = max(start, span.end_ns - self._base_ns)
        parent = self._placed.get(span.parent_id)
        match span.name:
            case names.REQUEST if names.REQUEST_ID in attributes:
                self._request(span, start, end)
            case names.QUEUE if parent is not None:
                self._queue(span, parent, start, end)
            case name if name in _CHILDREN and parent is not None:
                self._child(span, parent, start, end)
            case _ if names.DEVICE in attributes:
                self._device(span, start, end)
            case _:
                self._own(span, start, end)
        self._flush_if_long()

    def flush(self) -> None:
        """Write the events gathered since the last call."""
        self._write(self._events.take())

    def _flush_if_long(self) -> None:
        if self._events.gathered >= GATHERED:
            self.flush()

    def finish(self, epoch_ns: int) -> None:
        """Add what is known at the end only: what is left of the counters, and how long models stayed."""
        for gauge in self._gauges.values():
            gauge.finish()
        self._residencies.finish(max(0, epoch_ns - self._base_ns))

    def _request(self, span: SpanData, start: int, end: int) -> None:
        attributes, granted = span.attributes, span.granted_ns
        if granted is not None:
            start = min(max(start, granted - self._base_ns), end)
        pid = self._engine_pid(attributes)
        order, title = _slot_lane(attributes.get(names.SLOT), admitted=granted is not None)
        # At least 1 ns: a slice without a length cannot hold the end of a flow.
        end = max(end, start + 1)
        placed = Placed(pid, self._lanes.group(pid, order, title).place(start, end), start, end)
        remember(self._placed, span.span_id, placed)
        self._slice(names.REQUEST, names.REQUEST, placed, attributes)
        if granted is not None:
            self._gauge(pid, "busy", "slots").add(start, end)
        if load_id := attributes.get(names.SERVED_BY_LOAD, attributes.get(names.WAITED_FOR_LOAD)):
            self._residencies.used(str(load_id))
        for key in (names.WAITED_FOR_LOAD, names.PREFETCHED_BY):
            if load_id := attributes.get(key):
                self._arrows.out_of(f"load {load_id}", names.LOAD_FLOW, placed)
        for evict_id in str(attributes.get(names.EVICTED, "")).split():
            self._arrows.out_of(f"evict {evict_id}", names.EVICT_FLOW, placed)

    def _child(self, span: SpanData, parent: Placed, start: int, end: int) -> None:
        # A flow binds to the innermost slice at the parent's first nanosecond.
        start = min(max(start, parent.start + 1), parent.end)
        end = min(max(end, start), parent.end)
        at = Placed(parent.pid, parent.tid, start, end)
        title, rate = title_of(span.name, span.attributes, end - start)
        self._slice(title, span.name, at, span.attributes)
        if span.name == names.GENERATE and rate:
            lane = self._lanes.title(parent.pid, parent.tid)
            self._events.value(names.TOKENS_A_SECOND, parent.pid, start, lane, round(rate, 1))
            self._events.value(names.TOKENS_A_SECOND, parent.pid, end, lane, 0)

    def _queue(self, span: SpanData, request: Placed, start: int, end: int) -> None:
        attributes, pid = span.attributes, request.pid
        self._events.asynchronous(names.QUEUE, names.QUEUE, pid, (start, end), attributes)
        self._gauge(pid, "queue", "depth").add(start, end)
        load_id = attributes.get(names.WAITED_FOR_LOAD)
        if load_id is not None and end > start:
            tid = self._lanes.group(pid, *_WAITING).place(start, end)
            waits = Placed(pid, tid, start, end)
            self._slice(f"waits for load {load_id}", names.WAIT, waits, attributes)
            self._arrows.into(f"load {load_id}", names.WAIT_FLOW, waits)

    def _device(self, span: SpanData, start: int, end: int) -> None:
        attributes = span.attributes
        pid = self._lanes.pid(names.device_lanes(str(attributes[names.DEVICE])))
        order = _LANES.get(span.name, 2)
        if order == 0:
            end = max(end, start + 1)
        placed = Placed(
            pid, self._lanes.group(pid, order, _DEVICE_LANES[order]).place(start, end), start, end
        )
        remember(self._placed, span.span_id, placed)
        title = f"{span.name} {attributes.get(names.REQUEST_MODEL, '')}".rstrip()
        self._slice(title, span.name, placed, attributes)
        if span.name == names.MODEL_LOAD and names.LOAD_ID in attributes:
            self._arrows.end(f"load {attributes[names.LOAD_ID]}", placed)
            self._residencies.loaded(pid, attributes, end)
        elif span.name == names.EVICT and names.EVICT_ID in attributes:
            self._arrows.end(f"evict {attributes[names.EVICT_ID]}", placed)
            self._residencies.left(attributes, start)

    def _own(self, span: SpanData, start: int, end: int) -> None:
        pid = self._lanes.pid(_home_of(span.owner, self._home))
        tid = None
        if span.name == names.RUN and not span.parent_id:
            tid = self._lanes.group(pid, 0, "run").place(start, end)
        elif _has_lane(span.owner):
            lane = self._return_lane(span.owner, span.start_ns)
            tid = self._lanes.group(pid, 1, "stages").place_on(lane, start, end)
        title = span.name
        category = names.STAGE if span.parent_id else names.RUN
        if span.name in _INCIDENTS:
            category = span.name
            title = f"{title} {span.attributes.get(names.REQUEST_MODEL, '')}".rstrip()
            tid = self._lanes.group(pid, 3, "what happened").place(start, end)
        if tid is None:
            tid = self._lanes.group(pid, 2, "other spans").place(start, end)
        placed = Placed(pid, tid, start, end)
        self._slice(title, category, placed, span.attributes)
        if chain := span.attributes.get(names.CHAIN):
            self._arrows.chain(str(chain), placed)

    def _slice(
        self, title: str, category: str, at: Placed, attributes: Mapping[str, Value]
    ) -> None:
        if not _UNSHOWN.isdisjoint(attributes):
            attributes = {key: attributes[key] for key in attributes if key not in _UNSHOWN}
        self._events.slice(title, category, at, attributes)

    # -- lanes of the run's own spans -------------------------------------------------------------

    def lease_lane(self, owner: Hashable, start_ns: int) -> None:
        """Give `owner` (a thread or a task), which opens a span now, a lane until that span is added.

        Spans of one owner share a lane, so that they nest; two owners never share one at one time.
        """
        held = self._leased.get(owner)
        if held is None:
            held = self._leased[owner] = [self._free_lane(owner, start_ns), 0]
        held[1] += 1

    def end_leases(self, process: str) -> None:
        """Give back the lanes of spans that a process opened: it may have been killed within them."""
        ended = [owner for owner in self._leased if _home_of(owner, "") == process]
        for owner in ended:
            del self._leased[owner]

    def _free_lane(self, owner: Hashable, start_ns: int) -> int:
        home = _home_of(owner, self._home)
        of_home = (one for one in self._leased.items() if _home_of(one[0], self._home) == home)
        taken = {lane for _, (lane, _) in of_home}
        group = self._lanes.group(self._lanes.pid(home), 1, "stages")
        return group.free_lane(max(0, start_ns - self._base_ns), taken)

    def _return_lane(self, owner: Hashable, start_ns: int) -> int:
        if owner not in self._leased:
            self.lease_lane(owner, start_ns)
        held = self._leased[owner]
        held[1] -= 1
        if held[1] == 0:
            del self._leased[owner]
        return held[0]

    # -- counters ---------------------------------------------------------------------------------

    def counter(self, sample: CounterSample, epoch_ns: int) -> None:
        """Add one sample of a device's books to the batch."""
        pid = self._lanes.pid(names.device_lanes(sample.device))
        known = self._models.setdefault(sample.device, set())
        known.update(sample.resident)
        resident = {clean(model): int(sample.resident.get(model, 0)) for model in sorted(known)}
        free: dict[str, Value] = {"free": int(sample.free_bytes), "limit": int(sample.limit_bytes)}
        more = {
            "reserved": sample.reserved_bytes,
            "protected": sample.protected_bytes,
            "ceiling": sample.ceiling_bytes,
            "measured free": sample.measured_free_bytes,
        }
        free |= {name: int(value) for name, value in more.items() if value is not None}
        ns = max(0, epoch_ns - self._base_ns)
        for name, values in ((names.RESIDENT_BYTES, resident), (names.DEVICE_BYTES, free)):
            if values:
                self._events.counter(name, pid, ns, values)
        self._flush_if_long()

    def _gauge(self, pid: int, name: str, what: str) -> Gauge:
        gauge = self._gauges.get((pid, name))
        if gauge is None:
            gauge = self._gauges[pid, name] = Gauge(self._events, pid, name, what)
        return gauge

    def _engine_pid(self, attributes: Mapping[str, Value]) -> int:
        return self._lanes.pid(
            names.engine_lanes(
                str(attributes.get(names.PROVIDER, "")),
                str(attributes.get(names.REQUEST_MODEL, "")),
                remote=bool(attributes.get(names.REMOTE)),
            )
        )


def _home_of(owner: Hashable, home: str) -> str:
    """The group of lanes of a span's owner: `home`, unless it is a thread or task of another process."""
    return owner.process if isinstance(owner, PartOwner) else home


def _has_lane(owner: Hashable) -> bool:
    """Whether a thread or a task opened the span; otherwise its times were known before."""
    return owner is not None and not (isinstance(owner, PartOwner) and owner.key == "")


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
