"""The view of a run's spans as a Chrome Trace file that reads like a manifest in Perfetto.

The format is the Trace Event Format (JSON array form). What Perfetto's importer makes of it was measured
with its own trace processor (tests/traces/); the rules that follow from that: slices of a lane nest
exactly; times are relative to a base near the run's start, since decimals of microseconds since the epoch
do not fit a double; a flow's ends lie inside slices; async ids are local to their process.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

from traces import names
from traces.chrome.lanes import LaneTable
from traces.records import CounterSample
from traces.span_data import SpanData
from traces.text import Value, clean, microseconds, quote, quote_clean

_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")

MARGIN_NS = 3_600 * 1_000_000_000
"""How long before the run a load may have started; the file's time 0. Earlier times are drawn at 0."""

_CHILDREN = frozenset(
    {names.ADMIT, names.PROMPT_EVALUATION, names.GENERATE, names.WORK, names.ITEMS}
)
_REMEMBERED = 4096

_NOT_ADMITTED = (97, "not admitted")
_ANY_SLOT = (96, "requests")
_LAST_SLOT = 95


class Placed(NamedTuple):
    """Where a slice lies in the file: its lane and its times in nanoseconds of the file."""

    pid: int
    tid: int
    start: int
    end: int


class ChromeView:
    """Turns finished spans into events of a Chrome Trace file. One thread at a time calls it.

    Args:
        write: takes a batch of events, each a JSON object as text.
        base_ns: the epoch time, in nanoseconds, that is 0 in the file.
        home: name of the process that holds the run's own spans.
        before: the view of the run's last file; spans that are open now keep lanes of their own.
    """

    def __init__(
        self,
        write: Callable[[list[str]], None],
        *,
        base_ns: int,
        home: str,
        before: ChromeView | None = None,
    ) -> None:
        self._write = write
        self._base_ns = base_ns
        self._home = home
        self._batch: list[str] = []
        self._lanes = LaneTable(self._name_process, self._name_lane)
        self._placed: OrderedDict[int, Placed] = OrderedDict()
        self._loads: OrderedDict[str, Placed] = OrderedDict()
        self._waiting: OrderedDict[str, deque[Placed]] = OrderedDict()
        self._models: dict[str, set[str]] = {}
        self._ids = 0
        self._leased: dict[Hashable, list[int]] = {}
        if before is not None:
            for owner, (_, depth) in before._leased.items():
                self._leased[owner] = [self._free_lane(base_ns), depth]

    # -- spans ------------------------------------------------------------------------------------

    def add(self, span: SpanData) -> None:
        """Add the span's events to the batch; `flush` writes it."""
        attributes = span.attributes
        start = max(0, span.start_ns - self._base_ns)
        end = max(start, span.end_ns - self._base_ns)
        match span.name:
            case names.REQUEST if names.REQUEST_ID in attributes:
                self._request(span, start, end)
            case names.QUEUE if (request := self._placed.get(span.parent_id)) is not None:
                self._queue(attributes, request.pid, start, end)
            case names.MODEL_LOAD | names.EVICT if names.DEVICE in attributes:
                self._device(span, start, end)
            case name if (
                name in _CHILDREN and (parent := self._placed.get(span.parent_id)) is not None
            ):
                self._child(name, attributes, parent, start, end)
            case _:
                self._own(span, start, end)

    def flush(self) -> None:
        """Write the events gathered since the last call."""
        batch, self._batch = self._batch, []
        self._write(batch)

    def _request(self, span: SpanData, start: int, end: int) -> None:
        attributes, granted = span.attributes, span.granted_ns
        if granted is not None:
            start = min(max(start, granted - self._base_ns), end)
        pid = self._engine_pid(attributes)
        order, title = _slot_lane(attributes.get(names.SLOT), admitted=granted is not None)
        # At least 1 ns: a slice without a length cannot hold the end of a flow.
        end = max(end, start + 1)
        placed = Placed(pid, self._lanes.group(pid, order, title).place(start, end), start, end)
        _remember(self._placed, span.span_id, placed)
        self._slice(names.REQUEST, names.REQUEST, placed, attributes)
        for key in (names.WAITED_FOR_LOAD, names.PREFETCHED_BY):
            if load_id := attributes.get(key):
                self._flow_into(str(load_id), placed)

    def _child(
        self, name: str, attributes: Mapping[str, Value], parent: Placed, start: int, end: int
    ) -> None:
        # A flow ends at the parent's first nanosecond and binds to the innermost slice there.
        first = min(parent.start + 1, parent.end)
        start = min(max(start, first), parent.end)
        end = min(max(end, start), parent.end)
        self._slice(name, name, Placed(parent.pid, parent.tid, start, end), attributes)

    def _queue(self, attributes: Mapping[str, Value], pid: int, start: int, end: int) -> None:
        common = (
            f'"cat":"{names.QUEUE}","name":"{names.QUEUE}","pid":{pid},'
            f'"id2":{{"local":"{self._next_id()}"}}'
        )
        args = quote_clean(attributes)
        self._batch.append(f'{{"ph":"b",{common},"ts":{microseconds(start)},"args":{args}}}')
        self._batch.append(f'{{"ph":"e",{common},"ts":{microseconds(end)}}}')

    def _device(self, span: SpanData, start: int, end: int) -> None:
        attributes = span.attributes
        pid = self._lanes.pid(names.device_lanes(str(attributes[names.DEVICE])))
        end = max(end, start + 1)
        tid = self._lanes.group(pid, 0, "loads and evictions").place(start, end)
        placed = Placed(pid, tid, start, end)
        title = f"{span.name} {attributes.get(names.REQUEST_MODEL, '')}".rstrip()
        self._slice(title, span.name, placed, attributes)
        load_id = attributes.get(names.LOAD_ID)
        if load_id is not None and str(load_id) not in self._loads:
            _remember(self._loads, str(load_id), placed)
            for target in self._waiting.pop(str(load_id), ()):
                self._flow(placed, target)

    def _own(self, span: SpanData, start: int, end: int) -> None:
        pid = self._lanes.pid(self._home)
        tid = None
        if span.name == names.RUN and not span.parent_id:
            tid = self._lanes.group(pid, 0, "run").place(start, end)
        elif span.owner is not None:
            lane = self._return_lane(span.owner)
            tid = self._lanes.group(pid, 1, "stages").place_on(lane, start, end)
        if tid is None:
            tid = self._lanes.group(pid, 2, "other spans").place(start, end)
        category = names.STAGE if span.parent_id else names.RUN
        self._slice(span.name, category, Placed(pid, tid, start, end), span.attributes)

    # -- lanes of the run's own spans -------------------------------------------------------------

    def lease_lane(self, owner: Hashable, start_ns: int) -> None:
        """Give `owner` (a thread or a task), which opens a span now, a lane until that span is added.

        Spans of one owner share a lane, so that they nest; two owners never share one at one time.
        """
        held = self._leased.get(owner)
        if held is None:
            held = self._leased[owner] = [self._free_lane(start_ns), 0]
        held[1] += 1

    def _free_lane(self, start_ns: int) -> int:
        taken = {lane for lane, _ in self._leased.values()}
        group = self._lanes.group(self._lanes.pid(self._home), 1, "stages")
        return group.free_lane(max(0, start_ns - self._base_ns), taken)

    def _return_lane(self, owner: Hashable) -> int:
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
        free = {"free": int(sample.free_bytes), "limit": int(sample.limit_bytes)}
        ts = microseconds(max(0, epoch_ns - self._base_ns))
        for name, values in ((names.RESIDENT_BYTES, resident), (names.DEVICE_BYTES, free)):
            if values:
                self._batch.append(
                    f'{{"ph":"C","name":"{name}","pid":{pid},"ts":{ts},'
                    f'"args":{quote_clean(values)}}}'
                )

    # -- events -----------------------------------------------------------------------------------

    def _engine_pid(self, attributes: Mapping[str, Value]) -> int:
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
        self, title: str, category: str, at: Placed, attributes: Mapping[str, Value]
    ) -> None:
        self._batch.append(
            f'{{"ph":"X","name":{quote(title)},"cat":{quote(category)},"pid":{at.pid},"tid":{at.tid},'
            f'"ts":{microseconds(at.start)},"dur":{microseconds(at.end - at.start)},'
            f'"args":{quote_clean(attributes)}}}'
        )

    def _flow_into(self, load_id: str, target: Placed) -> None:
        source = self._loads.get(load_id)
        if source is None:
            if load_id not in self._waiting:
                _remember(self._waiting, load_id, deque(maxlen=_REMEMBERED))
            self._waiting[load_id].append(target)
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


def _remember(kept: OrderedDict[_Key, _Kept], key: _Key, value: _Kept) -> _Kept:
    kept[key] = value
    if len(kept) > _REMEMBERED:
        kept.popitem(last=False)
    return value


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
