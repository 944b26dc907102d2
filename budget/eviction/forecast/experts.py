"""Weighing experts online: whose decisions would have loaded least, counts most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from budget.books.engines import Bookings, EngineRecord
from budget.books.residents import Residents
from budget.eviction.forecast.expert_books import Losses, Shadow
from budget.eviction.forecast.figures import figure

NAMES = ("lru", "rates", "histories", "transitions")
LRU = 0
HALF_LIFE_UNITS = 64.0
"""What a load cost counts half after so many times the usual return distance."""
TOLERANCE = 0.03
"""Costs that differ by this share, or by the largest load, say little about who is better."""
NEGLIGIBLE = 0.01
"""An expert of less weight is not asked."""
MOST_DEVICES = 2
"""Shadows watch so many devices: enough to tell who is better, and not the work of all of them."""


class Contest:
    """Every expert has a shadow that it decides for alone; weights follow the shadows' load seconds.

    A weight is exp(-(cost - the least cost) / tolerance), costs fading with the requests. Source of the
    weights: Freund and Schapire, "A decision-theoretic generalization of on-line learning", 1997.

    The shadow of LRU knows all devices, because the guard compares the real loads with it (`lru_s`).

    `experts`: their losses, in the order of `NAMES`.
    """

    __slots__ = (
        "_costs",
        "_devices",
        "_experts",
        "_largest_s",
        "_residents",
        "_shadows",
        "_shares",
        "_watched",
        "_weights",
        "lru_s",
    )

    def __init__(self, experts: Sequence[Losses]) -> None:
        self._experts = experts
        self._costs = [0.0] * len(NAMES)
        self._largest_s = 0.0
        self.lru_s = 0.0
        """Load seconds of LRU on all devices since the start; they do not fade."""
        self._watched = 1.0
        self._devices: frozenset[str] = frozenset()
        self._weights: tuple[float, ...] | None = None
        self._shares: tuple[float, ...] | None = None
        self._residents: Residents | None = None
        self._shadows: tuple[Shadow, ...] = ()

    def attach(self, residents: Residents) -> None:
        """Take the books whose devices are watched; called once, before any use."""
        every = tuple(ledger.device for ledger in residents.books)
        devices = every[:MOST_DEVICES]
        self._residents, self._devices = residents, frozenset(devices)
        self._watched = len(devices) / max(1, len(every))
        self._shadows = tuple(
            Shadow(residents, every if number == LRU else devices, losses, ordered=number == LRU)
            for number, losses in enumerate(self._experts)
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

    def misses(self, engine_id: str) -> bool:
        """Whether `used` has anything to do: some shadow would have to load this engine."""
        bookings = self._whereabouts(engine_id)
        if not bookings:
            return False
        # Most engines are where only LRU's shadow looks.
        shadows = self._shadows if bookings[0][0] in self._devices else self._shadows[: LRU + 1]
        return any(engine_id not in shadow.held for shadow in shadows)

    def used(self, engine_id: str) -> None:
        """A request for an engine arrived: shadows without it load it, whoever costs least leaves."""
        bookings = self._whereabouts(engine_id)
        if bookings and self._residents is not None:
            self._load(self._residents[engine_id], bookings)

    def booked(self, engine: EngineRecord) -> None:
        """A real load starts: shadows that did not know where the engine would go do now."""
        self._load(engine, engine.bookings)

    @property
    def lru_held(self) -> Mapping[str, Bookings]:
        """The engines that LRU would have resident."""
        return self._shadows[LRU].held if self._shadows else {}

    def _whereabouts(self, engine_id: str) -> Bookings:
        """Where an engine is or must be."""
        engine = self._residents.get(engine_id) if self._residents is not None else None
        return engine.whereabouts if engine is not None else ()

    def _load(self, engine: EngineRecord, bookings: Bookings) -> None:
        seconds = engine.option.load_seconds
        watched = all(device in self._devices for device, _ in bookings)
        for number, shadow in enumerate(self._shadows):
            held = shadow.held.get(engine.engine_id)
            if number == LRU and held is None:
                self.lru_s += seconds
            elif held is not None and watched and held[0][0] not in self._devices:
                # LRU has it where no other shadow looks: it moves, and is judged as the others are.
                shadow.drop(engine.engine_id)
            elif held is not None or not watched:
                continue
            shadow.load(engine.engine_id, bookings)
            if watched:
                self._costs[number] += seconds
                self._largest_s = max(self._largest_s, seconds)
                self._weights = self._shares = None

    def reconfigured(self) -> None:
        """Engines that are gone hold nothing in any shadow."""
        for shadow in self._shadows:
            shadow.reconfigured()

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
        costs, largest_s = [figure(cost) for cost in state["costs"]], figure(state["largest_s"])
        if len(costs) != len(NAMES):
            raise ValueError(f"{len(costs)} costs of {len(NAMES)} experts")
        self._costs, self._largest_s = costs, largest_s
        self._weights = self._shares = None
