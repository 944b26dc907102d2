"""What would be resident if one expert alone had decided: books beside the real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from budget.actions import Candidate
from budget.engines import Bookings, EngineRecord
from budget.residents import Residents
from budget.victims import choose_victims

EXACT = 12
"""Up to this many engines on a device every set of victims is weighed."""
Loss = Callable[[str], float]


class Shadow:
    """The engines that one expert would have resident on some devices, and what its loads cost.

    `devices`: the ones watched; engines that are placed elsewhere leave no trace. `ordered`: victims go
    strictly from the least loss up, instead of the set of least total loss.
    """

    __slots__ = ("_by_device", "_devices", "_ordered", "_residents", "_taken", "held")

    def __init__(self, residents: Residents, devices: tuple[str, ...], *, ordered: bool) -> None:
        self._residents = residents
        self._ordered = ordered
        self._devices = frozenset(devices)
        self._by_device: dict[str, dict[str, int]] = {device: {} for device in devices}
        self._taken = dict.fromkeys(devices, 0)
        self.held: dict[str, Bookings] = {}
        """Bookings of the engines that would be resident."""

    def watches(self, bookings: Bookings) -> bool:
        """Whether all these bytes are on devices that are watched."""
        return bool(bookings) and all(device in self._devices for device, _ in bookings)

    def load(self, engine: EngineRecord, bookings: Bookings, loss: Loss) -> None:
        """Load an engine; who costs least to lose leaves first."""
        for device, amount in bookings:
            limit = self._residents.books[device].limit_bytes
            missing = self._taken[device] + amount - limit
            if missing > 0:
                for engine_id in self._victims(device, missing, loss):
                    self._drop(engine_id)
        for device, amount in bookings:
            self._taken[device] += amount
            self._by_device[device][engine.engine_id] = amount
        self.held[engine.engine_id] = bookings

    def _victims(self, device: str, missing: int, loss: Loss) -> list[str]:
        sizes = {e: n for e, n in self._by_device[device].items() if not self._pinned(e)}
        losses = [loss(engine_id) for engine_id in sizes]
        if sum(sizes.values()) <= missing:
            return list(sizes)
        if len(sizes) <= EXACT and not self._ordered:
            chosen = _least(list(sizes.values()), losses, missing)
            return [engine_id for n, engine_id in enumerate(sizes) if chosen >> n & 1]
        candidates = [
            Candidate(engine_id, value, ((device, sizes[engine_id]),))
            for engine_id, value in zip(sizes, losses, strict=True)
        ]
        found = choose_victims(candidates, {device: missing}, ordered=self._ordered) or candidates
        return [candidate.engine_id for candidate in found]

    def _drop(self, engine_id: str) -> None:
        for device, amount in self.held.pop(engine_id):
            self._taken[device] -= amount
            del self._by_device[device][engine_id]

    def _pinned(self, engine_id: str) -> bool:
        return engine_id in self._residents and self._residents[engine_id].pinned


def _least(sizes: list[int], losses: list[float], missing: int) -> int:
    """The set of least total loss that frees enough, as bits, by weighing every set."""
    freed, total = np.zeros(1, dtype=np.int64), np.zeros(1)
    for size, loss in zip(sizes, losses, strict=True):
        freed = np.concatenate([freed, freed + size])
        total = np.concatenate([total, total + loss])
    total[freed < missing] = np.inf
    return int(np.argmin(total))
