"""From records to spans, and to the numbers of a run's line."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from traces import names
from traces.processes.part_lines import Recording
from traces.recording.remembered import remember
from traces.recording.request_lines import first_token_ns, waited_seconds
from traces.records import (
    PREFETCH,
    CounterSample,
    EvictSpan,
    Incident,
    LoadSpan,
    OwnSpan,
    Phase,
    Record,
    RequestRecord,
)
from traces.span_data import SpanData
from traces.text import clean, clean_attributes

_CHAT_PARTS: Final = (names.PROMPT_EVALUATION, names.GENERATE)
_PARTS: Final = dict.fromkeys(
    ("call", "transcribe", "speak", "tokenize"), (names.WORK, names.ITEMS)
)
"""The names of a request's two parts, before and after its first piece."""


class SpanSink(Protocol):
    """Where finished spans, samples and requests go."""

    def span(self, span: SpanData) -> None:
        """Take a finished span."""
        ...

    def counter(self, sample: CounterSample, epoch_ns: int) -> None:
        """Take a sample of a device's books."""
        ...

    def request(self, record: RequestRecord) -> None:
        """Take a request for the run's line."""
        ...


class Recorder(Recording):
    """Makes spans of records. One thread at a time calls it.

    Args:
        sink: gets the spans.
        new_id: gives out ids of spans.
        offset_ns: epoch time minus monotonic time.
        record_content: whether prompts and answers are kept.
    """

    def __init__(
        self, sink: SpanSink, new_id: Callable[[], int], *, offset_ns: int, record_content: bool
    ) -> None:
        self._sink = sink
        self._new_id = new_id
        self._offset_ns = offset_ns
        self._record_content = record_content
        self._loads: OrderedDict[str, _Load] = OrderedDict()
        self._evicted: OrderedDict[str, set[str]] = OrderedDict()
        self._incidents: OrderedDict[str, None] = OrderedDict()
        self._samples: OrderedDict[str, None] = OrderedDict()
        self._prefetched: dict[str, str] = {}
        self._loaded, self._left, self._load_seconds = 0, 0, 0.0

    def record(self, record: Record, parent: int) -> None:
        """Make spans of what happened; what several requests or processes report is recorded once."""
        match record:
            case OwnSpan():
                self._own(record, parent)
            case RequestRecord():
                self._request(record, parent)
            case LoadSpan():
                self._load(record, parent)
            case EvictSpan():
                self._evict(record, parent)
            case Incident():
                self._incident(record, parent)
            case CounterSample():
                self._counter(record)

    def _load(self, load: LoadSpan, parent: int) -> None:
        """Once per (load_id, device)."""
        known = self._known_load(load.load_id, load.start_ns)
        if load.device in known.devices:
            return
        before = known.seconds
        known.start_ns = min(known.start_ns, load.start_ns)
        known.end_ns = max(known.end_ns, load.end_ns)
        self._load_seconds += known.seconds - before
        attributes = {
            **self._extra(load.attributes),
            names.LOAD_ID: load.load_id,
            names.REQUEST_MODEL: load.model,
            names.ENGINE: load.engine,
            names.DEVICE: load.device,
            names.BYTES: load.bytes,
            names.STORAGE: load.storage,
            names.REASON: load.reason,
        }
        span_id = self._span(names.MODEL_LOAD, load.start_ns, load.end_ns, parent, attributes)
        self._phases(load.phases, span_id, {names.LOAD_ID: load.load_id})
        known.span_id = known.span_id or span_id
        known.devices.add(load.device)
        if load.reason == PREFETCH:
            self._prefetched[load.model] = load.load_id

    def _evict(self, evict: EvictSpan, parent: int) -> None:
        """Once per (evict_id, device)."""
        devices = self._devices_left(evict.evict_id)
        if evict.device in devices:
            return
        devices.add(evict.device)
        attributes = {
            **self._extra(evict.attributes),
            names.EVICT_ID: evict.evict_id,
            names.REQUEST_MODEL: evict.model,
            names.DEVICE: evict.device,
            names.BYTES: evict.bytes,
            names.REASON: evict.reason,
            names.FOR_MODEL: evict.for_model,
        }
        span_id = self._span(names.EVICT, evict.start_ns, evict.end_ns, parent, attributes)
        self._phases(evict.phases, span_id, {names.EVICT_ID: evict.evict_id})

    def _incident(self, incident: Incident, parent: int) -> None:
        key = f"{incident.kind} {incident.start_ns} {incident.model} {incident.device}"
        if key in self._incidents:
            return
        remember(self._incidents, key, None)
        attributes = {
            **self._extra(incident.attributes),
            names.REQUEST_MODEL: incident.model or None,
            names.DEVICE: incident.device or None,
        }
        self._span(incident.kind, incident.start_ns, incident.end_ns, parent, attributes)

    def _counter(self, sample: CounterSample) -> None:
        """Once for a moment: several processes may ask for the same."""
        key = f"{sample.ns} {sample.device}"
        if key in self._samples:
            return
        remember(self._samples, key, None)
        self._sink.counter(sample, sample.ns + self._offset_ns)

    def _request(self, record: RequestRecord, parent: int) -> None:
        """With its queueing, prompt evaluation and generation."""
        attributes = self._request_attributes(record)
        load_ids = (attributes[names.WAITED_FOR_LOAD], attributes[names.PREFETCHED_BY])
        links = [self._loads[i].span_id for i in load_ids if i in self._loads]
        end_ns = max(record.end_ns, record.queued_ns)
        granted_ns = record.granted_ns
        span_id = self._new_id()
        offset = self._offset_ns
        self._sink.span(
            SpanData(
                names.REQUEST,
                span_id,
                parent,
                record.queued_ns + offset,
                end_ns + offset,
                clean_attributes({**self._extra(record.attributes), **attributes}),
                None if granted_ns is None else granted_ns + offset,
                None if record.error is None else clean(record.error_message),
                tuple(links),
            )
        )
        self._request_parts(record, span_id, end_ns)
        self._sink.request(record)

    def _own(self, span: OwnSpan, parent: int) -> None:
        attributes, offset = clean_attributes(span.attributes), self._offset_ns
        self._sink.span(
            SpanData(
                clean(span.name),
                span.span_id,
                parent,
                span.start_ns + offset,
                max(span.start_ns, span.end_ns) + offset,
                attributes,
                failure=str(attributes[names.ERROR_MESSAGE]) if span.failed else None,
                owner=span.owner,
            )
        )

    def knows(self, kind: str, known_id: str, device: str) -> None:
        """Record no more what is on the trace already: a load or an eviction of that id and device."""
        left = kind == names.EVICT
        devices = self._devices_left(known_id) if left else self._known_load(known_id, 0).devices
        devices.add(device)

    def take_figures(self) -> tuple[int, int, float]:
        """Loads, evictions and seconds of loads since the last call; a load on two devices is one."""
        found = self._loaded, self._left, self._load_seconds
        self._loaded, self._left, self._load_seconds = 0, 0, 0.0
        return found

    def load_seconds_of(self, load_id: str | None) -> float:
        """How long a load took; 0 where there was none, or none that is remembered."""
        known = self._loads.get(load_id or "")
        return 0.0 if known is None else known.seconds

    def _known_load(self, load_id: str, start_ns: int) -> _Load:
        known = self._loads.get(load_id)
        if known is None:
            known = remember(self._loads, load_id, _Load(start_ns, start_ns))
            self._loaded += 1
        return known

    def _devices_left(self, evict_id: str) -> set[str]:
        known = self._evicted.get(evict_id)
        if known is None:
            known = remember(self._evicted, evict_id, set[str]())
            self._left += 1
        return known

    # -- spans ------------------------------------------------------------------------------------

    def _phases(self, phases: Iterable[Phase], parent: int, common: Mapping[str, Any]) -> None:
        for name, start_ns, end_ns in phases:
            self._span(name, start_ns, end_ns, parent, common)

    def _request_parts(self, record: RequestRecord, parent: int, end_ns: int) -> None:
        common = {names.REQUEST_ID: record.request_id}
        granted_ns = record.granted_ns
        until = end_ns if granted_ns is None else granted_ns
        if until > record.queued_ns:
            waited = {
                **common,
                names.WAITED_FOR_LOAD: record.waited_for_load,
                names.WAITED_FOR: record.waited_for or None,
            }
            self._span(names.QUEUE, record.queued_ns, until, parent, waited)
        if granted_ns is None:
            return
        sent_ns = _between(granted_ns, record.sent_ns, end_ns)
        self._span(names.ADMIT, granted_ns, sent_ns, parent, common)
        if record.sent_ns is None:
            return
        first_ns = first_token_ns(record)
        if first_ns is None and record.error is None and record.operation == "chat":
            # Where evaluation ended is not known: one slice too few tells less than a wrong one.
            return
        evaluated_ns = _between(sent_ns, first_ns, end_ns)
        evaluated = {
            **common,
            names.INPUT_TOKENS: record.prompt_tokens,
            names.CACHED_TOKENS: record.cached_tokens,
            names.PROMPT_MS: record.prompt_ms,
        }
        first, rest = _PARTS.get(record.operation, _CHAT_PARTS)
        self._span(first, sent_ns, evaluated_ns, parent, evaluated)
        if first_ns is None:
            return
        generated = {
            **common,
            names.OUTPUT_TOKENS: record.completion_tokens,
            names.PREDICTED_MS: record.predicted_ms,
        }
        self._span(rest, evaluated_ns, end_ns, parent, generated)

    def _request_attributes(self, record: RequestRecord) -> dict[str, Any]:
        return {
            names.REQUEST_ID: record.request_id,
            names.OPERATION: record.operation,
            names.PROVIDER: record.engine,
            names.REQUEST_MODEL: record.model,
            names.REMOTE: record.remote or None,
            names.SLOT: record.slot,
            names.COLD: record.cold or None,
            names.WAITED_SECONDS: waited_seconds(record),
            names.WAITED_FOR: record.waited_for or None,
            names.WAITED_FOR_LOAD: record.waited_for_load,
            names.PREFETCHED_BY: self._prefetch_used_by(record),
            names.INPUT_TOKENS: record.prompt_tokens,
            names.CACHED_TOKENS: record.cached_tokens,
            names.OUTPUT_TOKENS: record.completion_tokens,
            names.PROMPT_MS: record.prompt_ms,
            names.PREDICTED_MS: record.predicted_ms,
            names.FINISH_REASONS: record.finish_reason and [record.finish_reason],
            names.ERROR_TYPE: record.error,
            names.ERROR_MESSAGE: record.error_message or None,
            names.INPUT_MESSAGES: record.prompt if self._record_content else None,
            names.OUTPUT_MESSAGES: record.answer if self._record_content else None,
        }

    def _prefetch_used_by(self, record: RequestRecord) -> str | None:
        """The prefetch whose first use this request is, unless it also waited for that load."""
        load_id = self._prefetched.get(record.model)
        if load_id is None or record.granted_ns is None:
            return None
        del self._prefetched[record.model]
        return None if load_id == record.waited_for_load else load_id

    def _extra(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._record_content or not attributes:
            return attributes
        return {key: value for key, value in attributes.items() if key not in names.CONTENT}

    def _span(
        self, name: str, start_ns: int, end_ns: int, parent: int, attributes: Mapping[str, Any]
    ) -> int:
        span_id, offset = self._new_id(), self._offset_ns
        times = start_ns + offset, max(start_ns, end_ns) + offset
        kept = clean_attributes(attributes)
        self._sink.span(SpanData(clean(name), span_id, parent, *times, kept))
        return span_id


def _between(low: int, value: int | None, high: int) -> int:
    return max(low, min(high if value is None else value, high))


@dataclass(slots=True)
class _Load:
    """What a run remembers of a load."""

    start_ns: int
    end_ns: int
    span_id: int = 0
    devices: set[str] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        return max(0, self.end_ns - self.start_ns) / 1e9
