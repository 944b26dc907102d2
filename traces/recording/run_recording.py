"""What a run is told, from any thread: all is put aside, and recorded later in the run's own thread."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from traces.checked import a_function, a_moment, a_table, a_text, an_object
from traces.processes.part_lines import Recording
from traces.recording.broken_sinks import Problems
from traces.recording.held_bytes import bytes_of_request, bytes_of_span, held_bytes
from traces.recording.span_handle import NOT_SAMPLED, SpanHandle, open_span
from traces.recording.writer import Writer
from traces.records import (
    CounterSample,
    EvictSpan,
    Incident,
    LoadSpan,
    OwnSpan,
    Record,
    RequestRecord,
)
from traces.text import snapshot


class RunRecording:
    """The part of a run that takes records; the run says what they go to."""

    sample: float
    _offset_ns: int
    _opened: Callable[[Hashable, int], None]
    _problems: Problems
    _recorder: Recording
    _root_id: int
    _writer: Writer

    _next_id: Callable[[], int]

    @property
    def active(self) -> bool:
        """Whether records are taken."""
        raise NotImplementedError

    def load(self, load: LoadSpan) -> None:
        """Record a load of a model; the same load on the same device is recorded once."""
        self._record(an_object("load", load, LoadSpan))

    def evict(self, evict: EvictSpan) -> None:
        """Record an eviction; the same eviction on the same device is recorded once."""
        self._record(an_object("evict", evict, EvictSpan))

    def incident(self, incident: Incident) -> None:
        """Record something else that happened; the same kind at the same moment is recorded once."""
        self._record(an_object("incident", incident, Incident))

    def counter(self, sample: CounterSample) -> None:
        """Record the books of a device at one moment."""
        self._record(an_object("sample", sample, CounterSample))

    def _record(self, record: Record) -> None:
        if self.active:
            self._writer.put((self._recorder.record, record, self._root_id), held_bytes(record))

    def request(self, record: RequestRecord) -> None:
        """Record a request that has ended, well or not, under the span that is open here."""
        an_object("record", record, RequestRecord)
        if self.active and (parent := self._sampled_parent()) != NOT_SAMPLED:
            self._writer.put((self._recorder.record, record, parent), bytes_of_request(record))

    def records(self, build: Callable[[], Iterable[Record]], n_bytes: int = 0) -> None:
        """Record what `build` returns, which is called later, in another thread.

        Requests are recorded under the span that is open here, and all of it is sampled as one request.
        `n_bytes` is about what `build` keeps in memory until then.
        """
        a_function("build", build)
        an_object("n_bytes", n_bytes, int, "a number of bytes")
        if self.active and (parent := self._sampled_parent()) != NOT_SAMPLED:
            self._writer.put((self._recorder.records, build, parent, self._root_id), n_bytes)

    def record_span(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a span whose times (monotonic nanoseconds) are known already."""
        a_text("name", name)
        a_moment("start_ns", start_ns)
        a_moment("end_ns", end_ns)
        kept, count = snapshot({} if attributes is None else a_table("attributes", attributes))
        if self.active and (parent := self._sampled_parent()) != NOT_SAMPLED:
            span = OwnSpan(name, self._next_id(), start_ns, end_ns, kept)
            self.end_span(span, parent, count)

    def span(self, name: str, /, start_ns: int | None = None, **attributes: object) -> SpanHandle:
        """A span around a piece of work; requests and spans within it become its children.

        It gets a lane of its thread or task. An exception marks it as failed and goes on.
        """
        a_text("name", name)
        if start_ns is not None:
            a_moment("start_ns", start_ns)
        return SpanHandle(self, name, start_ns, attributes)

    # -- what a span needs ------------------------------------------------------------------------

    def begin_span(self, owner: Hashable, start_ns: int) -> tuple[int, int]:
        """The ids of a span that begins and of its parent; NOT_SAMPLED for one that is not recorded."""
        parent = self._sampled_parent()
        if parent == NOT_SAMPLED:
            return NOT_SAMPLED, NOT_SAMPLED
        self._writer.put((self._opened, owner, start_ns + self._offset_ns))
        return self._next_id(), parent

    def end_span(self, span: OwnSpan, parent: int, characters: int) -> None:
        """Record a span that has ended, with at most so many characters in its attributes."""
        n_bytes = bytes_of_span(span, characters)
        self._writer.put((self._recorder.record, span, parent), n_bytes)

    def outlived(self, name: str) -> None:
        """A span ended after the run."""
        self._problems.report("span", f"{name!r} ended after its run: it is not on the trace")

    def _sampled_parent(self) -> int:
        """The span that is open here or the run's own; NOT_SAMPLED where nothing is recorded here."""
        held = open_span.get()
        if held is not None and held[0] is self:
            return held[1]
        if self.sample < 1 and random.random() >= self.sample:  # noqa: S311
            return NOT_SAMPLED
        return self._root_id
