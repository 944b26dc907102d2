"""Weighing experts online: the expert whose decisions would have loaded least counts most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from budget.books.engines import Bookings, EngineRecord
from budget.books.residents import Residents
from budget.eviction.forecast.expert_books import ExpertBooks, Losses
from budget.eviction.forecast.figures import figure

NAMES = ("lru", "rates", "histories", "transitions")
LRU = 0
HALF_LIFE_UNITS = 64.0
"""What a load cost counts half after so many times the usual return distance."""
TOLERANCE = 0.03
"""Costs that differ by this share, or by the largest load, say little about which expert is better."""
NEGLIGIBLE = 0.01
"""An expert of less weight is not asked."""
MOST_DEVICES = 2
"""Experts' books follow so many devices: enough to compare experts, without the work of all of them."""


class Contest:
    """Every expert has books in which it alone decides; weights follow the load seconds in these books.

    A weight is exp(-(cost - the least cost) / tolerance), costs fading with the requests. Source of the
    weights: Freund and Schapire, "A decision-theoretic generalization of on-line learning", 1997.

    The books of LRU follow all devices, because the guard compares the real loads with it (`lru_s`).

    `experts`: their losses, in the order of `NAMES`.
    """

    __slots__ = (
        "_costs",
        "_devices",
        "_expert_books",
        "_experts",
        "_largest_s",
        "_residents",
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
        self._expert_books: tuple[ExpertBooks, ...] = ()

    def attach(self, residents: Residents) -> None:
        """Take the books whose devices are watched; called once, before any use."""
        every = tuple(ledger.device for ledger in residents.books)
        devices = every[:MOST_DEVICES]
        self._residents, self._devices = residents, frozenset(devices)
        self._watched = len(devices) / max(1, len(every))
        self._expert_books = tuple(
            ExpertBooks(
                residents, every if number == LRU else devices, losses, ordered=number == LRU
            )
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
        """The weights of all but LRU, summing to 1; 0 for an expert that counts too little to be asked."""
        if self._shares is None:
            rest = self.weights[1:]
            most = sum(rest)
            kept = [w if w > NEGLIGIBLE * most else 0.0 for w in rest]
            self._shares = tuple([w / sum(kept) for w in kept])
        return self._shares

    def misses(self, engine_id: str) -> bool:
        """Whether `used` has anything to do: some expert would have to load this engine."""
        bookings = self._whereabouts(engine_id)
        if not bookings:
            return False
        # Most engines are on devices that only LRU's books follow.
        contenders = (
            self._expert_books if bookings[0][0] in self._devices else self._expert_books[: LRU + 1]
        )
        for books in contenders:  # noqa: SIM110 - `any` would cost five frames in every lease
            if engine_id not in books.held:
                return True
        return False

    def used(self, engine_id: str) -> None:
        """A request for an engine arrived: books without it load it, and evict what costs least."""
        bookings = self._whereabouts(engine_id)
        if bookings and self._residents is not None:
            self._load(self._residents[engine_id], bookings)

    def booked(self, engine: EngineRecord) -> None:
        """A real load starts: books that did not know where the engine would go do now."""
        self._load(engine, engine.bookings)

    @property
    def lru_held(self) -> Mapping[str, Bookings]:
        """The engines that LRU would have resident."""
        return self._expert_books[LRU].held if self._expert_books else {}

    def _whereabouts(self, engine_id: str) -> Bookings:
        """The bookings of an engine, or of its only option; empty where that is not decided yet."""
        engine = self._residents.get(engine_id) if self._residents is not None else None
        return engine.whereabouts if engine is not None else ()

    def _load(self, engine: EngineRecord, bookings: Bookings) -> None:
        seconds = engine.option.load_seconds
        watched = all(device in self._devices for device, _ in bookings)
        for number, books in enumerate(self._expert_books):
            held = books.held.get(engine.engine_id)
            if number == LRU and held is None:
                self.lru_s += seconds
            elif held is not None and watched and held[0][0] not in self._devices:
                # LRU has it on a device that no other books follow: it moves, and is judged as others are.
                books.drop(engine.engine_id)
            elif held is not None or not watched:
                continue
            books.load(engine.engine_id, bookings)
            if watched:
                self._costs[number] += seconds
                self._largest_s = max(self._largest_s, seconds)
                self._weights = self._shares = None

    def reconfigured(self) -> None:
        """Engines that are gone hold nothing in any books."""
        for books in self._expert_books:
            books.reconfigured()

    def fade(self, half_lives: float) -> None:
        """Let costs fade by so many half-lives; fewer where few of the devices are watched."""
        share = 0.5 ** (half_lives * self._watched)
        self._costs = [cost * share for cost in self._costs]
        self._weights = self._shares = None

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable; what the experts' books hold is not kept."""
        return {"costs": list(self._costs), "largest_s": self._largest_s}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        costs, largest_s = [figure(cost) for cost in state["costs"]], figure(state["largest_s"])
        if len(costs) != len(NAMES):
            raise ValueError(f"{len(costs)} costs of {len(NAMES)} experts")
        self._costs, self._largest_s = costs, largest_s
        self._weights = self._shares = None
