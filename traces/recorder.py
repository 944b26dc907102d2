"""From records to OpenTelemetry spans, and to the numbers of a run's line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, Tracer
from opentelemetry.trace.propagation import set_span_in_context

from traces import names
from traces.records import PREFETCH, EvictSpan, LoadSpan, RequestRecord
from traces.runs import RequestLine
from traces.text import Value, clean, clean_attributes

_CHAT_PARTS: Final = (names.PROMPT_EVALUATION, names.GENERATE)
_PARTS: Final = dict.fromkeys(
    ("call", "transcribe", "speak", "tokenize"), (names.WORK, names.ITEMS)
)
"""The names of a request's two parts, before and after its first piece."""


class Recorder:
    """Writes records as spans of one tracer and keeps what the run's line needs. Not thread-safe.

    Args:
        tracer: makes the spans.
        offset_ns: epoch time minus monotonic time.
        started_ns: monotonic time of the run's start.
        record_content: whether prompts and answers are kept.
    """

    def __init__(
        self, tracer: Tracer, *, offset_ns: int, started_ns: int, record_content: bool
    ) -> None:
        self._tracer = tracer
        self._offset_ns = offset_ns
        self._started_ns = started_ns
        self._record_content = record_content
        self._loaded: set[tuple[str, str]] = set()
        self._load_contexts: dict[str, SpanContext] = {}
        self._evicted: set[tuple[str, str]] = set()
        self._prefetched: dict[str, str] = {}
        self._load_times: dict[str, tuple[int, int]] = {}
        self._requests: list[tuple[RequestLine, str | None]] = []

    @property
    def loads(self) -> int:
        """Loads recorded, each once."""
        return len(self._load_times)

    @property
    def evictions(self) -> int:
        """Evictions recorded, each once."""
        return len({evict_id for evict_id, _ in self._evicted})

    @property
    def load_seconds(self) -> float:
        """Seconds of all loads recorded, one load on two devices counted once."""
        return sum(self._load_seconds(load_id) for load_id in self._load_times)

    def load(self, load: LoadSpan, parent: Context) -> None:
        """Record a load, once per (load_id, device)."""
        if (load.load_id, load.device) in self._loaded:
            return
        self._loaded.add((load.load_id, load.device))
        start_ns, end_ns = self._load_times.get(load.load_id, (load.start_ns, load.end_ns))
        self._load_times[load.load_id] = (min(start_ns, load.start_ns), max(end_ns, load.end_ns))
        attributes = {
            names.LOAD_ID: load.load_id,
            names.REQUEST_MODEL: load.model,
            names.ENGINE: load.engine,
            names.DEVICE: load.device,
            names.BYTES: load.bytes,
            names.STORAGE: load.storage,
            names.REASON: load.reason,
        }
        span = self._span(
            names.MODEL_LOAD, load.start_ns, load.end_ns, parent, attributes, load.attributes
        )
        self._load_contexts.setdefault(load.load_id, span.get_span_context())
        if load.reason == PREFETCH:
            self._prefetched[load.model] = load.load_id

    def evict(self, evict: EvictSpan, parent: Context) -> None:
        """Record an eviction, once per (evict_id, device)."""
        if (evict.evict_id, evict.device) in self._evicted:
            return
        self._evicted.add((evict.evict_id, evict.device))
        attributes = {
            names.EVICT_ID: evict.evict_id,
            names.REQUEST_MODEL: evict.model,
            names.DEVICE: evict.device,
            names.BYTES: evict.bytes,
            names.REASON: evict.reason,
            names.FOR_MODEL: evict.for_model,
        }
        self._span(names.EVICT, evict.start_ns, evict.end_ns, parent, attributes, evict.attributes)

    def request(self, record: RequestRecord, parent: Context) -> None:
        """Record a request with its queueing, prompt evaluation and generation."""
        self._requests.append((self._line(record), record.waited_for_load))
        attributes = self._request_attributes(record)
        load_ids = (attributes.get(names.WAITED_FOR_LOAD), attributes.get(names.PREFETCHED_BY))
        links = [Link(self._load_contexts[i]) for i in load_ids if i in self._load_contexts]
        end_ns = max(record.end_ns, record.queued_ns)
        span = self._tracer.start_span(
            names.REQUEST,
            context=parent,
            attributes=clean_attributes({**self._extra(record.attributes), **attributes}),
            links=links,
            start_time=self._epoch(record.queued_ns),
        )
        granted_ns = record.granted_ns
        if granted_ns is not None:
            span.add_event(names.GRANTED, timestamp=self._epoch(granted_ns))
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, clean(record.error_message)))
        span.end(self._epoch(end_ns))
        self._request_parts(record, set_span_in_context(span), end_ns)

    def request_lines(self) -> tuple[RequestLine, ...]:
        """The requests recorded so far, in the order of their arrival."""
        ordered = sorted(self._requests, key=lambda entry: entry[0].arrival_s)
        # A load may be reported after the request that waited for it.
        return tuple(replace(line, load_s=self._load_seconds(load)) for line, load in ordered)

    # -- spans ------------------------------------------------------------------------------------

    def _request_parts(self, record: RequestRecord, parent: Context, end_ns: int) -> None:
        common = {names.REQUEST_ID: record.request_id}
        granted_ns = record.granted_ns
        until = end_ns if granted_ns is None else granted_ns
        if until > record.queued_ns:
            self._span(names.QUEUE, record.queued_ns, until, parent, common)
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
            names.INPUT_TOKENS: record.prompt_tokens,
            names.CACHED_TOKENS: record.cached_tokens,
            names.PROMPT_MS: record.prompt_ms,
        }
        first, rest = _PARTS.get(record.operation, _CHAT_PARTS)
        self._span(first, sent_ns, evaluated_ns, parent, common, evaluated)
        if first_ns is None:
            return
        generated = {
            names.OUTPUT_TOKENS: record.completion_tokens,
            names.PREDICTED_MS: record.predicted_ms,
        }
        self._span(rest, evaluated_ns, end_ns, parent, common, generated)

    def _request_attributes(self, record: RequestRecord) -> dict[str, Any]:
        return {
            names.REQUEST_ID: record.request_id,
            names.OPERATION: record.operation,
            names.PROVIDER: record.engine,
            names.REQUEST_MODEL: record.model,
            names.REMOTE: record.remote,
            names.SLOT: record.slot,
            names.COLD: record.cold,
            names.WAITED_SECONDS: _waited_seconds(record),
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
        if self._record_content:
            return attributes
        return {key: value for key, value in attributes.items() if key not in names.CONTENT}

    def _span(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        parent: Context,
        *attributes: Mapping[str, Any],
    ) -> Span:
        merged: dict[str, Value] = {}
        for part in reversed(attributes):
            merged |= clean_attributes(self._extra(part))
        span = self._tracer.start_span(
            name, context=parent, attributes=merged, start_time=self._epoch(start_ns)
        )
        span.end(self._epoch(max(start_ns, end_ns)))
        return span

    def _epoch(self, ns: int) -> int:
        return ns + self._offset_ns

    # -- the run's line ---------------------------------------------------------------------------

    def _load_seconds(self, load_id: str | None) -> float:
        start_ns, end_ns = self._load_times.get(load_id or "", (0, 0))
        return max(0, end_ns - start_ns) / 1e9

    def _line(self, record: RequestRecord) -> RequestLine:
        first_ns = first_token_ns(record)
        return RequestLine(
            request_id=record.request_id,
            model=record.model,
            engine=record.engine,
            operation=record.operation,
            remote=record.remote,
            cold=record.cold,
            arrival_s=(record.queued_ns - self._started_ns) / 1e9,
            waited_s=_waited_seconds(record),
            load_s=0.0,
            ttft_s=None if first_ns is None else max(0, first_ns - record.queued_ns) / 1e9,
            total_s=max(0, record.end_ns - record.queued_ns) / 1e9,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            output_tokens=record.completion_tokens,
            tokens_per_s=tokens_per_second(record),
            finish_reason=record.finish_reason,
            error=record.error,
            prompt=record.prompt if self._record_content else None,
            answer=record.answer if self._record_content else None,
        )


def first_token_ns(record: RequestRecord) -> int | None:
    """When the first token arrived: as observed, else by the engine's own figure, else None."""
    if record.first_token_ns is not None:
        return record.first_token_ns
    if record.predicted_ms is None:
        return None
    start_ns = record.queued_ns if record.sent_ns is None else record.sent_ns
    return max(start_ns, record.end_ns - round(record.predicted_ms * 1e6))


def tokens_per_second(record: RequestRecord) -> float | None:
    """Tokens generated a second: by the engine's own figure, else from first token to end."""
    if not record.completion_tokens:
        return None
    if record.predicted_ms:
        return record.completion_tokens / (record.predicted_ms / 1e3)
    first_ns = record.first_token_ns
    if first_ns is None or record.end_ns <= first_ns:
        return None
    return record.completion_tokens / ((record.end_ns - first_ns) / 1e9)


def _waited_seconds(record: RequestRecord) -> float:
    until = record.end_ns if record.granted_ns is None else record.granted_ns
    return max(0, until - record.queued_ns) / 1e9


def _between(low: int, value: int | None, high: int) -> int:
    return max(low, min(high if value is None else value, high))
