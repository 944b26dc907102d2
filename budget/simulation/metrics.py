"""What a replay costs: loads, their seconds, what was hidden of them, and how long callers waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one replay. Seconds and bytes; waits are from arrival to a slot.

    `hidden_load_seconds`: the part of the load seconds during which no request waited for that model.
    """

    loads: int
    load_seconds: float
    hidden_load_seconds: float
    evictions: int
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_max_s: float
    moved_bytes: int
    denied: int


@dataclass(frozen=True, slots=True)
class ResidentInterval:
    """One residency of a model on a device, from the start of its load to its eviction (seconds)."""

    model: str
    device: str
    load_s: float
    ready_s: float
    gone_s: float


@dataclass(slots=True)
class Metrics:
    """Collects while a replay runs."""

    loads: int = 0
    load_seconds: float = 0.0
    hidden_load_seconds: float = 0.0
    evictions: int = 0
    moved_bytes: int = 0
    denied: int = 0
    waits: list[float] = field(default_factory=list)
    stays: list[ResidentInterval] = field(default_factory=list)

    def summary(self) -> Summary:
        """The figures so far."""
        p50, p95, p99, most = _percentiles(self.waits)
        return Summary(
            self.loads,
            self.load_seconds,
            self.hidden_load_seconds,
            self.evictions,
            p50,
            p95,
            p99,
            most,
            self.moved_bytes,
            self.denied,
        )


def _percentiles(waits: Sequence[float]) -> tuple[float, float, float, float]:
    if not waits:
        return (0.0, 0.0, 0.0, 0.0)
    p50, p95, p99, most = np.percentile(np.array(waits), [50.0, 95.0, 99.0, 100.0])
    return float(p50), float(p95), float(p99), float(most)
