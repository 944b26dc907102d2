"""The engines that would be resident if one expert alone had decided: books beside the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from budget.books.engines import Bookings
from budget.books.residents import Residents
from budget.eviction.smallest_sets import set_of_least_loss

Losses = Callable[[Sequence[str]], Sequence[float]]
"""What losing each of these engines would cost, as one expert sees it."""


class ExpertBooks:
    """The engines that one expert would have resident on some devices.

    `devices`: the ones watched; engines that are placed elsewhere leave no trace. `ordered`: victims go
    strictly from the least loss up, instead of the set of least total loss.
    """

    __slots__ = ("_by_device", "_losses", "_ordered", "_residents", "_taken", "held")

    def __init__(
        self, residents: Residents, devices: tuple[str, ...], losses: Losses, *, ordered: bool
    ) -> None:
        self._residents = residents
        self._losses = losses
        self._ordered = ordered
        self._by_device: dict[str, dict[str, int]] = {device: {} for device in devices}
        self._taken = dict.fromkeys(devices, 0)
        self.held: dict[str, Bookings] = {}
        """Bookings of the engines that would be resident."""

    def load(self, engine_id: str, bookings: Bookings) -> None:
        """Load an engine; the engines that cost least to lose leave first."""
        for device, amount in bookings:
            limit = self._residents.books[device].limit_bytes
            missing = self._taken[device] + amount - limit
            if missing > 0:
                for victim in self._victims(device, missing):
                    self.drop(victim)
        for device, amount in bookings:
            self._taken[device] += amount
            self._by_device[device][engine_id] = amount
        self.held[engine_id] = bookings

    def reconfigured(self) -> None:
        """Drop the engines that are not configured any more."""
        for engine_id in list(self.held):
            engine = self._residents.get(engine_id)
            if engine is None or engine.retired:
                self.drop(engine_id)

    def _victims(self, device: str, missing: int) -> Sequence[str]:
        sizes = self._by_device[device]
        pinned = self._residents.pinned_ids
        names = [name for name in sizes if name not in pinned]
        amounts = [sizes[name] for name in names]
        found = set_of_least_loss(self._losses(names), amounts, missing, ordered=self._ordered)
        return names if found is None else [names[place] for place in found]

    def drop(self, engine_id: str) -> None:
        """Take an engine out of the books."""
        for device, amount in self.held.pop(engine_id):
            self._taken[device] -= amount
            del self._by_device[device][engine_id]
