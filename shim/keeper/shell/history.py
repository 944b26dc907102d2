"""The history of the keeper, for the traces of its clients: loads, evictions, books over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from budget.books.ledger import LedgerView
from shim.keeper.shell.load_speeds import LoadSpeeds

LOADS_KEPT = 4096
SAMPLES_KEPT = 16384


@dataclass(slots=True)
class LoadStory:
    """One load. `end_ns` is 0 while it lasts; times are monotonic nanoseconds.

    `device` holds most of its bytes; `devices` are the bytes by device. `restore_s` is the part of its time
    that restored the KV state of `restored_tokens`. `phases` are the begins of its phases,
    which end at `ready_ns`. `bytes_per_s` is how fast the weights came, or the
    whole load where that is all that is known, and `best_bytes_per_s` the most that was seen from the same
    kind of storage on this machine; 0 before there was anything to compare it with.
    """

    load_id: str
    engine: str
    model: str
    device: str
    bytes: int
    reason: str
    start_ns: int
    end_ns: int = 0
    storage: str = ""
    read_bytes: int = 0
    fraction: float = 0.0
    error: str = ""
    restore_s: float = 0.0
    restored_tokens: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)
    placement: str = ""
    file_bytes: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    ready_ns: int = 0
    bytes_per_s: float = 0.0
    best_bytes_per_s: float = 0.0


@dataclass(slots=True)
class EvictStory:
    """One eviction, from the decision to the process's end. In `save_s` of it, KV state was saved.

    `decision` is the record of the decision, where there was one.
    """

    evict_id: str
    engine: str
    model: str
    device: str
    bytes: int
    reason: str
    start_ns: int
    end_ns: int = 0
    save_s: float = 0.0
    saved_bytes: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)
    decision: Mapping[str, Any] | None = None


@dataclass(slots=True)
class StageStory:
    """One file read into the page cache ahead of its load. `end_ns` is 0 while it lasts.

    `read_bytes` counts the bytes that were not in the page cache before.
    """

    engine: str
    model: str
    start_ns: int
    end_ns: int = 0
    read_bytes: int = 0
    stopped: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class NoteStory:
    """Something that happened at one moment: a denial, a death, a correction, low memory.

    `kind` is the name that it has on a trace; `device` and `model` are empty where it has none.
    """

    ns: int
    kind: str
    model: str
    device: str
    detail: str
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One device's books at one moment, bytes by model.

    `measured_free_bytes` is what the device itself had free; None where that is not measured.
    """

    ns: int
    device: str
    resident: Mapping[str, int]
    free_bytes: int
    limit_bytes: int
    reserved_bytes: int = 0
    protected_bytes: int = 0
    ceiling_bytes: int = 0
    measured_free_bytes: int | None = None


@dataclass(slots=True)
class History:
    """Bounded rings of loads, evictions, stagings, notes and samples of the books."""

    loads: deque[LoadStory] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))
    evictions: deque[EvictStory] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))
    stagings: deque[StageStory] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))
    notes: deque[NoteStory] = field(default_factory=lambda: deque(maxlen=LOADS_KEPT))
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    speeds: LoadSpeeds = field(default_factory=LoadSpeeds)

    def rate(self, load: LoadStory, disk: str = "") -> None:
        """Note how fast a load was, beside the fastest one from the same kind of storage.

        Args:
            load: it has ended.
            disk: of its files; counts for loads that read it.
        """
        begin_ns = load.phases.get("weights", load.start_ns)
        until_ns = load.phases.get("buffers", load.ready_ns)
        if until_ns > begin_ns:
            load.bytes_per_s = load.file_bytes / ((until_ns - begin_ns) / 1e9)
        storage = f"cold {disk}".rstrip() if load.storage == "cold" else load.storage
        load.best_bytes_per_s = self.speeds.saw(storage, load.bytes_per_s) or 0.0

    def sample(
        self, ns: int, view: LedgerView, resident: Mapping[str, int], measured_free: int | None
    ) -> None:
        """Note the books of a device, unless they are unchanged."""
        for last in reversed(self.samples):
            if last.device == view.device:
                if last.resident == resident and last.free_bytes == view.free_bytes:
                    return
                break
        self.samples.append(
            Sample(
                ns,
                view.device,
                dict(resident),
                view.free_bytes,
                view.limit_bytes,
                view.reserved_bytes,
                view.protected_bytes,
                view.ceiling_bytes,
                measured_free,
            )
        )

    def between(self, since_ns: int, until_ns: int) -> dict[str, Any]:
        """Everything that overlaps a span of time, JSON-serialisable.

        It includes the last sample before the span, so that counters start at the right value.
        """

        def overlaps(start_ns: int, end_ns: int) -> bool:
            return start_ns <= until_ns and (end_ns == 0 or end_ns >= since_ns)

        inside = [s for s in self.samples if since_ns <= s.ns <= until_ns]
        before: dict[str, Sample] = {s.device: s for s in self.samples if s.ns < since_ns}
        return {
            "loads": [asdict(x) for x in self.loads if overlaps(x.start_ns, x.end_ns)],
            "evictions": [asdict(x) for x in self.evictions if overlaps(x.start_ns, x.end_ns)],
            "stagings": [asdict(x) for x in self.stagings if overlaps(x.start_ns, x.end_ns)],
            "notes": [asdict(x) for x in self.notes if since_ns <= x.ns <= until_ns],
            "samples": [asdict(s) for s in (*before.values(), *inside)],
        }
