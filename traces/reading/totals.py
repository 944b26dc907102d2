"""What all requests of a trace add up to, kept instead of them. Pure."""

from __future__ import annotations

import heapq
import itertools
from array import array
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

from traces.reading.covered_times import CoveredTimes
from traces.reading.request_times import RequestTimes

WORST: Final = 5
"""Waits that are told."""
_SLOT: Final = "a slot of "
"""How what a request waited for begins, where that was a slot."""


@dataclass(slots=True)
class ModelTotals:
    """The requests of one model. `spoken_tokens` are those of which the engine told its `spoken_s`."""

    requests: int = 0
    cold: int = 0
    spoken_tokens: int = 0
    spoken_s: float = 0.0
    first_tokens_s: array[float] = field(default_factory=lambda: array("d"))
    slot_waits: CoveredTimes = field(default_factory=CoveredTimes)

    @property
    def tokens_per_s(self) -> float | None:
        """By the engine's own figures; None without any."""
        return self.spoken_tokens / self.spoken_s if self.spoken_s else None

    def add(self, request: RequestTimes) -> None:
        """Count a request."""
        self.requests += 1
        self.cold += request.cold
        # A single token has no speed: its engine counts from it on, some microseconds.
        if request.output_tokens and request.output_tokens > 1 and request.predicted_s:
            self.spoken_tokens += request.output_tokens
            self.spoken_s += request.predicted_s
        if request.first_token_s is not None:
            self.first_tokens_s.append(request.first_token_s)
        if request.waits is not None and _was_for_a_slot(request):
            self.slot_waits.add(*request.waits)


class RequestTotals:
    """Takes each request once it is whole. Memory: some bytes a request, whatever the trace says of it."""

    def __init__(self) -> None:
        self.models: dict[str, ModelTotals] = {}
        self.generating, self.prompting, self.queueing = (CoveredTimes() for _ in range(3))
        self.waited_for: set[str] = set()
        """The loads that requests waited for."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.failed = 0
        self._worst: list[tuple[float, int, RequestTimes]] = []
        self._numbers = itertools.count()

    @property
    def worst(self) -> list[RequestTimes]:
        """Those that waited longest, the longest first."""
        return [one for _, _, one in sorted(self._worst, key=itemgetter(0, 1), reverse=True)]

    def add(self, request: RequestTimes) -> None:
        """Count a request; one of which the trace has pieces only counts for nothing."""
        if not request.model:
            return
        self.models.setdefault(request.model, ModelTotals()).add(request)
        self.prompt_tokens += request.prompt_tokens
        self.cached_tokens += request.cached_tokens
        self.failed += request.error is not None
        if request.waited_for:
            self.waited_for.add(request.waited_for)
        for times, kept in (
            (request.generate, self.generating),
            (request.prompt, self.prompting),
            (request.waits, self.queueing),
        ):
            if times is not None:
                kept.add(*times)
        # Of equal waits the earlier one counts as the longer.
        heapq.heappush(self._worst, (request.waited_s, -next(self._numbers), request))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)


def _was_for_a_slot(request: RequestTimes) -> bool:
    if request.waited_for is not None:
        return False
    # Traces of older versions do not say it.
    return not request.queued_for or request.queued_for.startswith(_SLOT)
