"""Weighing experts online: whose decisions would have loaded least, counts most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from budget.engines import Bookings, EngineRecord
from budget.forecast.shadows import Shadow
from budget.residents import Residents

NAMES = ("lru", "rates", "histories", "transitions")
LRU = 0
HALF_LIFE_UNITS = 64.0
"""What a load cost counts half after so many times the usual return distance."""
TOLERANCE = 0.01
"""Costs that differ by this share, or by the largest load, say little about who is better."""
NEGLIGIBLE = 0.01
"""An expert of less weight is not asked."""
MOST_DEVICES = 4
"""Shadows watch so many devices: enough to tell who is better, and not the work of all of them."""


Losses = Callable[[str], tuple[float, ...]]
"""Every expert's loss of an engine, in the order of `NAMES`."""


class Contest:
    """Every expert has a shadow that it decides for alone; weights follow the shadows' load seconds.

    A weight is exp(-(cost - the least cost) / tolerance), costs fading with the requests. Source of the
    weights: Freund and Schapire, "A decision-theoretic generalization of on-line learning", 1997.
    """

    __slots__ = (
        "_costs",
        "_devices",
        "_largest_s",
        "_residents",
        "_shadows",
        "_shares",
        "_watched",
        "_weights",
    )

    def __init__(self) -> None:
        self._costs = [0.0] * len(NAMES)
        self._largest_s = 0.0
        self._watched = 1.0
        self._devices: frozenset[str] = frozenset()
        self._weights: tuple[float, ...] | None = None
        self._shares: tuple[float, ...] | None = None
        self._residents: Residents | None = None
        self._shadows: tuple[Shadow, ...] = ()

    def attach(self, residents: Residents) -> None:
        """Take the books whose devices are watched; called once, before any use."""
        devices = tuple(ledger.device for ledger in residents.books)[:MOST_DEVICES]
        self._residents, self._devices = residents, frozenset(devices)
        self._watched = len(devices) / max(1, len(list(residents.books)))
        self._shadows = tuple(
            Shadow(residents, devices, ordered=number == LRU) for number in range(len(NAMES))
        )

    @property
    def weights(self) -> tuple[float, ...]:
        """What each expert counts, in the order of `NAMES`; their sum is 1."""
        if self._weights is None:
            least = min(self._costs)
            tolerance = max(self._largest_s, TOLERANCE * least) or 1.0
            raw = [math.exp((least - cost) / tolerance) for cost in self._costs]
            total = sum(raw)
            self._weights = tuple(value / total for value in raw)
        return self._weights

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights of all but LRU, summing to 1; 0 for whoever counts too little to be asked."""
        if self._shares is None:
            rest = self.weights[1:]
            most = sum(rest)
            kept = [w if w > NEGLIGIBLE * most else 0.0 for w in rest]
            self._shares = tuple([w / sum(kept) for w in kept])
        return self._shares

    def used(self, engine_id: str, losses: Losses) -> None:
        """A request for an engine arrived: shadows without it load it, whoever costs least leaves."""
        if self._residents is None or engine_id not in self._residents:
            return
        engine = self._residents[engine_id]
        bookings = engine.bookings
        if not bookings and len(engine.spec.options) == 1:
            bookings = engine.spec.options[0].bookings
        # Most engines of a large machine are placed where nobody watches.
        if bookings and bookings[0][0] in self._devices:
            self._load(engine, bookings, losses)

    def booked(self, engine: EngineRecord, losses: Losses) -> None:
        """A real load starts: shadows that did not know where the engine would go do now."""
        self._load(engine, engine.bookings, losses)

    def _load(self, engine: EngineRecord, bookings: Bookings, losses: Losses) -> None:
        missing = [
            (number, shadow)
            for number, shadow in enumerate(self._shadows)
            if engine.engine_id not in shadow.held
        ]
        if not missing or not missing[0][1].watches(bookings):
            return
        known: dict[str, tuple[float, ...]] = {}
        for number, shadow in missing:

            def loss(engine_id: str, number: int = number) -> float:
                if engine_id not in known:
                    known[engine_id] = losses(engine_id)
                return known[engine_id][number]

            shadow.load(engine, bookings, loss)
            self._pay(number, engine.option.load_seconds)

    def _pay(self, number: int, load_seconds: float) -> None:
        self._costs[number] += load_seconds
        self._largest_s = max(self._largest_s, load_seconds)
        self._weights = self._shares = None

    def fade(self, half_lives: float) -> None:
        """So many half-lives are over; they take longer where few of the devices are watched."""
        share = 0.5 ** (half_lives * self._watched)
        self._costs = [cost * share for cost in self._costs]
        self._weights = self._shares = None

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable; what shadows hold is not kept."""
        return {"costs": list(self._costs), "largest_s": self._largest_s}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        costs, largest_s = [float(cost) for cost in state["costs"]], float(state["largest_s"])
        if len(costs) != len(NAMES) or min(costs) < 0.0 or largest_s < 0.0:
            raise ValueError(f"costs {costs}, largest {largest_s}")
        self._costs, self._largest_s = costs, largest_s
        self._weights = self._shares = None
