"""The most that an engine may take of a device, and how it is held to it.

What an engine takes beyond its booking is for the next one, or for other programs. A chat template that
builds text without end, say, would take it all. Two things stand against that: the keeper looks often
and ends what has passed its ceiling, and on machines and placements without a GPU the kernel refuses
what is far beyond it (`RLIMIT_DATA`; drivers of GPUs reserve address space that it would count).
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backends.machine.processes import process_bytes
from budget.errors import OutOfMemory
from budget.footprint import HOST, EngineArgs, Placement

DEFAULT_MARGIN_BYTES: Final = 512 << 20
_MARGIN_DIVISOR: Final = 4
_DRIVER_BYTES: Final = 1 << 30
_STACK_BYTES: Final = 8 << 20
_THREADS_BESIDE: Final = 16
"""Threads of llama-server beside those that compute, and those for HTTP: one a core or slot."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most that one engine may take: what is booked and a margin, by device.

    The margin is `margin_bytes` or a quarter of what is booked, whichever is more; as much again as is
    booked where that comes from the closed form alone. A GPU's driver gets something more: what it
    takes, on both sides, is not llama.cpp's to say. A margin of 0 is no bound.
    """

    booked: Mapping[str, int]
    margin_bytes: int = DEFAULT_MARGIN_BYTES
    estimated: bool = False

    @classmethod
    def of(cls, placement: Placement, margin_bytes: int) -> Ceilings:
        """Those of an engine that is placed like this."""
        estimated = placement.source in {"closed-form", "bound"}
        return cls(dict(placement.bookings), margin_bytes, estimated)

    def margin(self, device: str) -> int:
        """What it may take of a device beyond its booking."""
        booked = self.booked.get(device, 0)
        share = booked if self.estimated else booked // _MARGIN_DIVISOR
        driver = _DRIVER_BYTES if any(name.startswith("cuda:") for name in self.booked) else 0
        return max(self.margin_bytes, share) + driver

    def exceeded(
        self, model: str, found: Mapping[str, int | None], log_tail: Sequence[str]
    ) -> OutOfMemory | None:
        """What is wrong with bytes that were found by device; None where nothing is."""
        for device, taken in found.items():
            booked = self.booked.get(device, 0)
            ceiling = booked + self.margin(device)
            if self.margin_bytes and taken is not None and taken > ceiling:
                return OutOfMemory(
                    f"{model} took {taken} bytes of {device}; {booked} are booked, and {ceiling} are"
                    " the most that it may take.",
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
        """Before a load: the kernel refuses what is beyond twice the ceiling, stacks left aside."""
        if self.margin_bytes:
            count = 2 * threads + args.slots + (os.cpu_count() or 1) + _THREADS_BESIDE
            ceiling = self.booked.get(HOST, 0) + self.margin(HOST)
            _bound(pid, 2 * ceiling + count * _stack_bytes())

    def bound_growth(self, pid: int) -> None:
        """After a load: from what it holds now, the kernel refuses to add twice the margin.

        What is booked and not touched yet may be asked for only with the first request.
        """
        held = process_bytes(pid)
        if self.margin_bytes and held is not None:
            untouched = max(0, self.booked.get(HOST, 0) - held.own)
            _bound(pid, held.data + untouched + 2 * self.margin(HOST))


def _stack_bytes() -> int:
    """The address space of a thread's stack, which is next to empty."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _STACK_BYTES if soft == resource.RLIM_INFINITY else max(soft, _STACK_BYTES)


def _bound(pid: int, data_bytes: int) -> None:
    """Set the process's `RLIMIT_DATA`. Where that is not allowed, the looks have to do."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        # The hard limit stays: the next bound may be a wider one.
        soft = data_bytes if hard == resource.RLIM_INFINITY else min(data_bytes, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
