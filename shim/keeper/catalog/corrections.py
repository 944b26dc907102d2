"""Corrections from loaded engines: their measured bytes against their booked bytes.

`compare` is pure; `Corrections` keeps its results and logs them. The rule, and why bytes go up at once
and down only with reserve, is in docs/decisions/0005-corrections-go-up-at-once.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from backends.footprint.cache import cache_key
from backends.footprint.learned import Learned, LearnedBytes, LearnedStore
from budget.books.byte_text import size
from budget.errors import KeepwarmError
from budget.footprint import GUESSED, Footprint, Placement
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")

FOLDER: Final = "learned"

TOLERANCE: Final = 0.01
"""Differences up to this share of what was booked are left alone."""

WARM_USES: Final = 3
"""After so many leases an engine has touched all memory that it works with."""

_TOLD_OVER: Final = 0.1
"""A warning is given of an engine that takes so much more of its bytes than was booked."""
_CONFIRM_EVERY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True)
class Seen:
    """Measurements of one engine: its reported buffers, its process's bytes, the leases that it served."""

    reported: Mapping[str, int]
    measured: Mapping[str, int]
    uses: int = 0


def compare(
    placement: Placement, seen: Seen, before: Learned | None = None
) -> dict[str, LearnedBytes] | None:
    """The corrected bytes of each device; None when no booked figure is wrong by more than 1%.

    Args:
        placement: the booked placement, corrected by `before` already.
        seen: the measurements.
        before: the corrections of earlier loads.
    """
    growing = placement.args.embeddings
    guessed = placement.source in GUESSED
    found = {
        device: _device(part, device, seen, before, growing=growing, guessed=guessed)
        for device, part in placement.footprints.items()
    }
    booked = dict(placement.bookings)
    wrong = [d for d, row in found.items() if row.corrected_bytes != booked[d]]
    return found if wrong else None


def _device(
    part: Footprint,
    device: str,
    seen: Seen,
    before: Learned | None,
    *,
    growing: bool,
    guessed: bool,
) -> LearnedBytes:
    known = before.devices.get(device) if before else None
    reported = max(seen.reported.get(device, 0), known.reported_bytes if known else 0)
    measured = max(seen.measured.get(device, 0), known.measured_bytes if known else 0)
    overhead = known.overhead_bytes if known else part.overhead_bytes
    booked = part.total_bytes
    # Where a device's processes cannot be measured, the reported buffers and the overhead count.
    whole = max(measured, reported) if measured else reported + overhead
    target = max(booked, whole, reported + overhead if reported else 0)
    touched = measured >= reported > 0 or (reported > 0 and not measured)
    warm = seen.uses >= (1 if guessed else WARM_USES)
    if touched and warm and not growing:
        # The bytes beyond its buffers are measured now, and the next load includes them.
        target, overhead = whole, whole - reported
    if abs(target - booked) <= TOLERANCE * booked:
        target = booked
    # What people guessed says nothing of what is plausible; what the load took does.
    first = max(booked, reported) if guessed else booked
    estimated = known.estimated_bytes if known else first
    return LearnedBytes(estimated, overhead, reported, measured, target)


def learned_store() -> LearnedStore:
    """The store of corrections in the state folder; one in memory alone where there is no such folder."""
    try:
        return LearnedStore(state_dir() / FOLDER)
    except KeepwarmError:
        return LearnedStore()


class Corrections:
    """Compares measurements with bookings, keeps the corrections and logs them. One per keeper."""

    def __init__(self, store: LearnedStore, build: str) -> None:
        self._store = store
        self._build = build
        self._known: dict[str, Learned | None] = {}

    def observe(self, label: str, identity: str, placement: Placement, seen: Seen) -> Placement:
        """The placement to book from now on; the same object when it was right.

        Implausibly many bytes are booked while this engine runs, and not kept.
        """
        # The key holds the side files as they are now, because one may have been replaced.
        key = cache_key(identity, placement.args, self._build)
        known = self._known.get(key)
        if known is not None and not self._store.holds(known, placement.args):
            del self._known[key]  # it was forgotten meanwhile
        if key not in self._known:
            self._known[key] = self._store.get(identity, placement.args, self._build)
        devices = compare(placement, seen, self._known[key])
        now = int(self._store.clock())
        if devices is None:
            self._confirm(key, placement, seen, now)
            return placement
        learned = Learned(identity, self._build, asdict(placement.args), devices, now)
        # A leak in one engine is no figure for the next one. While it runs, its bytes are booked.
        believed = learned.is_possible
        if believed:
            self._known[key] = learned
            self._store.put(placement.args, learned)
        booked = dict(placement.bookings)
        for device, row in devices.items():
            if row.corrected_bytes != booked[device]:
                # What a limit has room for anyway need not be shown on a program's stderr.
                much = row.corrected_bytes > booked[device] * (1 + _TOLD_OVER)
                level = logging.WARNING if much else logging.INFO
                said = _sentence(label, device, booked[device], row, believed=believed)
                LOG.log(level, "%s", said)
        return learned.apply(placement)

    def _confirm(self, key: str, placement: Placement, seen: Seen, now: int) -> None:
        """Note that a peak was seen again, so that it does not fade. At most once a day."""
        known = self._known[key]
        if known is None or now - known.at < _CONFIRM_EVERY_S:
            return
        stands = all(
            seen.measured.get(device, 0) >= (1 - TOLERANCE) * row.measured_bytes
            for device, row in known.devices.items()
        )
        if stands:
            self._known[key] = replace(known, at=now)
            self._store.put(placement.args, replace(known, at=now))


def _sentence(label: str, device: str, booked: int, row: LearnedBytes, *, believed: bool) -> str:
    share = f"{(row.corrected_bytes - booked) / booked:+.1%}" if booked else "unbooked"
    then = "learned for its next load" if believed else "too much to be learned for its next load"
    return (
        f"{label} takes {size(row.corrected_bytes)} of {device}, booked were {size(booked)} ({share}; "
        f"reported {size(row.reported_bytes)}, measured {size(row.measured_bytes)}): {then}"
    )
