"""The most bytes that an engine may take of a device, and how that is enforced.

Bytes beyond an engine's booking belong to the next engine, or to other programs. A chat template that
builds text without end, for example, would take them all. So the keeper looks often, and ends an engine
beyond its ceiling. Without a GPU the kernel also refuses bytes far beyond it (`RLIMIT_DATA`); with one it
cannot, because drivers of GPUs reserve address space that would count.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backends.machine.processes import process_bytes
from budget.books.byte_text import size
from budget.errors import OutOfMemory
from budget.footprint import HOST, MOST_EXTRA_BYTES, MOST_TIMES, EngineArgs, Placement

DEFAULT_MARGIN_BYTES: Final = 512 << 20
_MARGIN_DIVISOR: Final = 4
_DRIVER_BYTES: Final = 1 << 30
_STACK_BYTES: Final = 8 << 20
_THREADS_BESIDE: Final = 16
"""Threads of llama-server beside those that compute, and those for HTTP: one a core or slot."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most bytes that one engine may take, by device: its booking and a margin.

    The margin is `margin_bytes` or a quarter of the booking, whichever is more. For a booking from the
    closed form alone it is as much as the booking. With a GPU it is larger on both sides, because
    llama.cpp does not know the driver's bytes. A margin of 0 means no bound.
    """

    booked: Mapping[str, int]
    margin_bytes: int = DEFAULT_MARGIN_BYTES
    estimated: bool = False

    @classmethod
    def of(cls, placement: Placement, margin_bytes: int) -> Ceilings:
        """The ceilings of an engine with this placement."""
        estimated = placement.source in {"closed-form", "bound"}
        return cls(dict(placement.bookings), margin_bytes, estimated)

    def margin(self, device: str) -> int:
        """The bytes that it may take of a device beyond its booking."""
        booked = self.booked.get(device, 0)
        share = booked if self.estimated else booked // _MARGIN_DIVISOR
        driver = _DRIVER_BYTES if any(name.startswith("cuda:") for name in self.booked) else 0
        return max(self.margin_bytes, share) + driver

    def by_device(self) -> dict[str, int]:
        """The ceiling of each device that has one."""
        if not self.margin_bytes:
            return {}
        return {device: booked + self.margin(device) for device, booked in self.booked.items()}

    def exceeded(
        self, model: str, found: Mapping[str, int | None], log_tail: Sequence[str]
    ) -> OutOfMemory | None:
        """The error if bytes by device exceed a ceiling, else None."""
        for device, taken in found.items():
            booked = self.booked.get(device, 0)
            ceiling = booked + self.margin(device)
            if self.margin_bytes and taken is not None and taken > ceiling:
                return OutOfMemory(
                    f"{model} took {size(taken)} of {device}; {size(booked)} are booked, and "
                    f"{size(ceiling)} are the most that it may take.",
                    hint="Look at its chat template and engine arguments. If it needs so much, raise"
                    " [keeper] engine_margin.",
                    model=model,
                    device=device,
                    booked_bytes=booked,
                    ceiling_bytes=ceiling,
                    found_bytes=taken,
                    log_tail=list(log_tail),
                )
        return None

    def bound_load(self, pid: int, args: EngineArgs, threads: int) -> None:
        """Before a load: let the kernel refuse bytes beyond twice the ceiling (without stacks)."""
        if self.margin_bytes:
            count = 2 * threads + args.slots + (os.cpu_count() or 1) + _THREADS_BESIDE
            ceiling = self.booked.get(HOST, 0) + self.margin(HOST)
            _bound(pid, 2 * ceiling + count * _stack_bytes())

    def bound_growth(self, pid: int) -> None:
        """After a load: let the kernel refuse growth by more than twice the margin.

        The margin is wide because some booked bytes are only allocated at the first request.
        """
        held = process_bytes(pid)
        if self.margin_bytes and held is not None:
            untouched = max(0, self.booked.get(HOST, 0) - held.own)
            _bound(pid, held.data + untouched + 2 * self.margin(HOST))


class PlausibleCeilings(Ceilings):
    """The ceilings of an engine whose bytes were declared or guessed by people, not computed.

    Taking more than that is booked and learned, up to what would be a leak (`backends.footprint.learned`).
    The kernel bounds nothing, because such libraries reserve address space that they never use.
    """

    def margin(self, device: str) -> int:
        """The bytes that it may take of a device beyond its booking."""
        booked = self.booked.get(device, 0)
        return max(self.margin_bytes, (MOST_TIMES - 1) * booked + MOST_EXTRA_BYTES)


def _stack_bytes() -> int:
    """The address space of a thread's stack, which is nearly unused."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else max(soft, _STACK_BYTES)


def _bound(pid: int, data_bytes: int) -> None:
    """Set the process's `RLIMIT_DATA`. Where that is not allowed, only the keeper's looks are left."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        # The hard limit stays: the next bound may be a wider one.
        soft = data_bytes if hard == resource.RLIM_INFINITY else min(data_bytes, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
