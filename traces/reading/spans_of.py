"""What a trace's events say of requests, loads and evictions, in seconds from the run's beginning. Pure."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from traces import names
from traces.reading.request_times import RequestTimes
from traces.reading.stored_events import number_of
from traces.reading.totals import RequestTotals
from traces.records import PREFETCH

MICROSECONDS: Final = 1e6
DECLARED_USES: Final = "declared uses"
"""What a policy says that it followed, where it knew them."""
_MOST_OPEN: Final = 16_384
"""Requests that are put together at a time. Those of one batch of a trace stand together."""
_OURS: Final = frozenset(
    {names.RUN, names.STAGE, names.REQUEST, names.QUEUE, names.MODEL_LOAD, names.EVICT}
)


@dataclass(frozen=True, slots=True)
class Stay:
    """A load or an end of a model's residency; `bytes` are those on all its devices.

    `declared`: it was decided by declared uses.
    """

    id: str
    model: str
    begin: float
    end: float
    reason: str
    storage: str = ""
    bytes: int = 0
    declared: bool = False

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(slots=True)
class Spans:
    """All of a trace that a summary needs; its requests are added up, and not kept."""

    run: tuple[float, float] | None = None
    totals: RequestTotals = field(default_factory=RequestTotals)
    loads: list[Stay] = field(default_factory=list)
    evictions: list[Stay] = field(default_factory=list)
    first: float | None = None
    last: float = 0.0
    events: int = 0
    of_a_run: bool = False
    """Whether any of the events is keepwarm's."""
    limits: dict[str, float] = field(default_factory=dict)
    """The most bytes that models might take of each device, by its group on the trace."""
    problems: list[str] = field(default_factory=list)
    """What the runs say of themselves that is missing on the trace."""
    _open: OrderedDict[str, RequestTimes] = field(default_factory=OrderedDict)
    _places: dict[str, int] = field(default_factory=dict)

    def request(self, one: str) -> RequestTimes:
        """A request that is put together; where there are too many, the first of them is done."""
        found = self._open.get(one)
        if found is None:
            found = self._open[one] = RequestTimes(one)
            if len(self._open) > _MOST_OPEN:
                self.totals.add(self._open.popitem(last=False)[1])
        return found

    def finish(self) -> None:
        """All events were read."""
        while self._open:
            self.totals.add(self._open.popitem(last=False)[1])

    def add(self, stays: list[Stay], one: Stay) -> None:
        """Add a load or an end; one that lies on several devices is on the trace once on each."""
        place = self._places.setdefault(one.id, len(stays)) if one.id else len(stays)
        if place == len(stays):
            stays.append(one)
            return
        known = stays[place]
        stays[place] = replace(
            known,
            begin=min(known.begin, one.begin),
            end=max(known.end, one.end),
            bytes=known.bytes + one.bytes,
        )

    def loads_by_model(self) -> dict[str, list[Stay]]:
        """The loads of each model that was loaded."""
        found: dict[str, list[Stay]] = {}
        for load in self.loads:
            found.setdefault(load.model, []).append(load)
        return found

    def declared(self) -> frozenset[str]:
        """Models whose coming uses the run declared, as far as anything was decided by that."""
        return frozenset(one.model for one in (*self.loads, *self.evictions) if one.declared)

    @property
    def bounds(self) -> tuple[float, float]:
        """The run's begin and end; without a run, those of its events."""
        return self.run or (self.first or 0.0, self.last)


def spans_of(events: Iterable[dict[str, Any]]) -> Spans:
    """The spans of a trace's events; those of other kinds and other programs count for nothing."""
    found, queues = Spans(), dict[tuple[Any, Any], str]()
    for event in events:
        found.events += 1
        found.of_a_run = found.of_a_run or event.get("cat") in _OURS
        begin = number_of(event.get("ts"))
        if begin is None:
            continue
        begin /= MICROSECONDS
        end = begin + (number_of(event.get("dur")) or 0.0) / MICROSECONDS
        if event.get("ph") in ("X", "b", "e"):
            found.first = begin if found.first is None else min(found.first, begin)
            found.last = max(found.last, end)
        _take(found, queues, event, (begin, end))
    found.finish()
    return found


def _take(
    found: Spans, queues: dict[tuple[Any, Any], str], event: dict[str, Any], at: tuple[float, float]
) -> None:
    args, kind = event.get("args"), event.get("cat")
    args = args if isinstance(args, dict) else {}
    if event.get("ph") in ("b", "e") and kind == names.QUEUE:
        _queued(found, queues, event, args, at[0])
    elif event.get("ph") == "C" and event.get("name") == names.DEVICE_BYTES:
        device, limit = str(event.get("pid")), number_of(args.get("limit")) or 0.0
        found.limits[device] = max(limit, found.limits.get(device, 0.0))
    elif event.get("ph") != "X":
        return
    elif kind == names.RUN:
        # A merged trace has several.
        before = found.run or at
        found.run = (min(before[0], at[0]), max(before[1], at[1]))
        if names.PROBLEMS in args:
            found.problems.append(str(args[names.PROBLEMS]))
    elif kind in (names.REQUEST, names.PROMPT_EVALUATION, names.GENERATE, names.WORK, names.ITEMS):
        _of_request(_request(found, args), str(kind), args, at)
    elif kind == names.MODEL_LOAD:
        found.add(found.loads, _stay(args, names.LOAD_ID, at))
    elif kind == names.EVICT:
        found.add(found.evictions, _stay(args, names.EVICT_ID, at))


def _queued(
    found: Spans, queues: dict[tuple[Any, Any], str], event: dict[str, Any], args: dict[str, Any], at: float
) -> None:  # fmt: skip
    key = (event.get("pid"), str(event.get("id2") or event.get("id")))
    if event["ph"] == "b":
        request = _request(found, args)
        request.asked = at
        queues[key] = request.id
    elif key in queues:
        found.request(queues.pop(key)).granted = at


def _request(found: Spans, args: dict[str, Any]) -> RequestTimes:
    return found.request(str(args.get(names.REQUEST_ID, "")))


def _of_request(
    request: RequestTimes, kind: str, args: dict[str, Any], at: tuple[float, float]
) -> None:
    if kind == names.REQUEST:
        request.model = sys.intern(str(args.get(names.REQUEST_MODEL, "")))
        request.granted = at[0] if request.granted is None else request.granted
        request.asked = at[0] if request.asked is None else request.asked
        request.end = at[1]
        request.cold = bool(args.get(names.COLD))
        request.waited_for = _text(args.get(names.WAITED_FOR_LOAD))
        request.queued_for = str(args.get(names.WAITED_FOR, ""))
        request.error = _text(args.get(names.ERROR_TYPE))
        tokens = number_of(args.get(names.OUTPUT_TOKENS))
        predicted = number_of(args.get(names.PREDICTED_MS))
        request.prompt_tokens = int(number_of(args.get(names.INPUT_TOKENS)) or 0)
        request.cached_tokens = int(number_of(args.get(names.CACHED_TOKENS)) or 0)
        request.output_tokens = None if tokens is None else int(tokens)
        request.predicted_s = None if predicted is None else predicted / 1e3
    elif kind == names.PROMPT_EVALUATION:
        request.prompt = at
    elif request.generate is None:
        request.generate = at
    else:
        request.generate = (request.generate[0], at[1])


def _stay(args: dict[str, Any], key: str, at: tuple[float, float]) -> Stay:
    return Stay(
        str(args.get(key, "")),
        sys.intern(str(args.get(names.REQUEST_MODEL, ""))),
        *at,
        sys.intern(str(args.get(names.REASON, ""))),
        sys.intern(str(args.get(names.STORAGE, ""))),
        int(number_of(args.get(names.BYTES)) or 0),
        PREFETCH
        in (args.get(names.REASON), args.get(names.DECISION))  # only declared uses make one
        or args.get(names.DECISION_FOLLOWED) == DECLARED_USES,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
