"""The routes of a session's requests: the endpoint of each, and the model that takes over from another."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from backends.base import shown_url
from backends.machine.forks import renew_after_fork
from budget.errors import (
    AdmissionDenied,
    BadModelFile,
    DeadlineExceeded,
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    EngineTimeout,
    KeepwarmError,
    LoadFailed,
    MeasurementFailed,
    NeverFits,
    QueueFull,
)
from shim.calls.routing.endpoint_choice import EndpointChoice, Pick, Stability, WeightedEndpoint
from shim.config.schema.endpoint_values import EndpointEntry

_ELSEWHERE: Final = (EndpointUnavailable, EngineTimeout, EngineDied, QueueFull)
_CANNOT_LOAD: Final = (AdmissionDenied, NeverFits, LoadFailed, BadModelFile, MeasurementFailed)
CHECK_S: Final = 2.0
"""How long an endpoint that failed before may take to answer at all, before it gets a request again."""


def fails_over(error: BaseException) -> bool:
    """Whether another endpoint may answer what ended like this."""
    if isinstance(error, EndpointError) and not isinstance(error, _ELSEWHERE):
        status = error.facts.get("status")
        return isinstance(status, int) and status >= 500
    return isinstance(error, _ELSEWHERE) and not isinstance(error, DeadlineExceeded)


def takes_over(error: BaseException) -> bool:
    """Whether the fallback of a model may answer what ended like this."""
    return fails_over(error) or isinstance(error, _CANNOT_LOAD)


class Routes:
    """What a session knows of its endpoints. Safe from any thread and after `fork()`.

    Args:
        now_s: the clock.
        draw: makes random numbers between 0 and 1.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._now_s = now_s
        self._draw = draw
        self._choices: dict[tuple[EndpointEntry, ...], EndpointChoice] = {}
        self.stability: dict[str, Stability] = {}
        """The models whose engine died under a request."""
        self._lock = threading.Lock()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the requests that run are the parent's."""
        self._choices, self._lock = {}, threading.Lock()

    def pick(self, model: str, entries: Sequence[EndpointEntry], passed: Sequence[int]) -> Pick:
        """The endpoint of a request, which is counted there until `ended`.

        Raises:
            QueueFull: all of them have as many requests as they may.
            EndpointUnavailable: each was tried.
        """
        with self._lock:
            choice = self._choice(entries)
            pick = choice.pick(self._now_s(), self._draw(), passed)
            if pick is not None:
                choice.begun(pick)
                return pick
            full = choice.full(passed)
        where = ", ".join(shown_url(entry.url) for entry in entries)
        if full:
            raise QueueFull(
                f"Each endpoint of {model} has as many requests as it may ({where}).",
                hint="Try again later, or raise `concurrency` of an endpoint.",
                model=model,
            )
        raise EndpointUnavailable(
            f"No endpoint of {model} answers ({where}).",
            hint="Check the URLs and that the servers run.",
            model=model,
        )

    def _choice(self, entries: Sequence[EndpointEntry]) -> EndpointChoice:
        key = tuple(entries)
        found = self._choices.get(key)
        if found is None:
            targets = [WeightedEndpoint(one.url, one.weight, one.concurrency) for one in key]
            found = self._choices[key] = EndpointChoice(targets)
        return found

    def ended(
        self, entries: Sequence[EndpointEntry], place: int, error: BaseException | None
    ) -> None:
        """A request is over there. One that the caller interrupted says nothing about the endpoint."""
        with self._lock:
            choice = self._choice(entries)
            choice.ended(place)
            if error is None:
                choice.succeeded(place)
            elif fails_over(error):
                choice.failed(place, self._now_s(), self._draw())
            elif isinstance(error, KeepwarmError):
                # It answered; what it refused is the caller's.
                choice.succeeded(place)

    def died(self, model: str) -> None:
        """A model's engine ended under a request."""
        with self._lock:
            self.stability.setdefault(model, Stability()).died(self._now_s())

    def unstable(self, model: str) -> bool:
        """Whether a model's engine dies too often to be asked."""
        with self._lock:
            known = self.stability.get(model)
            return known is not None and known.unstable(self._now_s())
