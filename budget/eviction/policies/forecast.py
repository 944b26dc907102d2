"""The forecast: the least expected load seconds leave; declared uses before learned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from typing import Any, Final

from budget.books.declared_uses import DeclaredUses
from budget.books.engines import EngineRecord
from budget.books.residents import Residents
from budget.eviction.forecast.forecaster import Forecaster
from budget.eviction.forecast.guard import Guard
from budget.eviction.forecast.lookahead import Lookahead, LookaheadProblem
from budget.eviction.policies.lru import Lru
from budget.eviction.victims import Need

WINDOW = 128
"""Declared uses that are looked at."""
SMALLEST = 1e-9

DECLARED_USES: Final = "declared uses"
"""What a decision followed that knew them; readers of traces look for these words."""


class Forecast:
    """The default policy. A loss is load seconds x the discounted number of expected uses.

    Expected uses: p / (1 - p), p being the forecaster's E[discount**d] of the next use; for uses that
    come at random this is proportional to their rate, and for a known next use it falls with its
    distance. While the guard follows LRU, losses are recency's.
    """

    name = "forecast"

    def __init__(self) -> None:
        self._forecaster = Forecaster()
        self._lookahead = Lookahead()
        self._uses = DeclaredUses()
        self._residents: Residents | None = None
        self._guard = Guard()
        self._seen: tuple[int, dict[str, int], int] = (-1, {}, 0)

    @property
    def ordered(self) -> bool:
        """In order only while LRU is followed."""
        return self._follows_lru

    @property
    def _follows_lru(self) -> bool:
        return not self._uses and (self._guard.following or self._forecaster.recency_rules)

    @property
    def followed(self) -> str:
        """Declared uses, LRU and why, or the experts with their shares."""
        if self._uses:
            return DECLARED_USES
        if self._guard.following:
            return "lru, as the forecast loaded more than it"
        if self._forecaster.recency_rules:
            return "lru, which would have loaded least of late"
        return self._forecaster.followed

    @property
    def forecaster(self) -> Forecaster:
        """What was learned, to be read."""
        return self._forecaster

    def attach(self, residents: Residents, declared_uses: DeclaredUses) -> None:
        """Take engines, books and declared uses, to be read."""
        self._residents, self._uses = residents, declared_uses
        self._forecaster.attach(residents)

    def used(self, engine_id: str, now: float) -> None:
        """Learn from a request."""
        self._forecaster.used(engine_id, now)

    def booked(self, engine: EngineRecord, now: float) -> None:
        """A load starts."""
        self._forecaster.booked(engine, now)
        self._guard.booked(engine.option.load_seconds, self._forecaster.lru_s)

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """What was learned of an engine holds for the one that runs its model now."""
        self._forecaster.reconfigured(successors)
        self._lookahead = Lookahead()
        self._seen = (-1, {}, 0)

    def losses(self, engines: Sequence[EngineRecord], now: float) -> Sequence[float]:
        """Expected load seconds to be paid for losing each engine, in the horizon's unit."""
        if self._follows_lru:
            # Recency is at most 1: whatever LRU would have resident stays before all else.
            lru = self._forecaster.lru_held
            held = [1.0 if engine.engine_id in lru else 0.0 for engine in engines]
            return list(map(add, held, Lru().losses(engines, now)))
        names = [engine.engine_id for engine in engines]
        odds = self._declared_odds(names, now) if self._uses else self._forecaster.odds(names, now)
        return [e.option.load_seconds * (o + SMALLEST) for e, o in zip(engines, odds, strict=True)]

    def _declared_odds(self, engine_ids: Sequence[str], now: float) -> list[float]:
        """Expected uses where some are declared: those for certain, the others as they were foretold."""
        distances, length = self._distances()
        discount, undeclared = self._forecaster.discount, self._uses.undeclared
        found = []
        for engine_id, guess in zip(
            engine_ids, self._forecaster.expectations(engine_ids, now), strict=True
        ):
            if engine_id in distances:
                known = discount ** distances[engine_id]
                expected = known + undeclared * max(0.0, guess - known)
            else:
                expected = guess * (undeclared + (1.0 - undeclared) * discount**length)
            found.append(expected / (1.0 - min(expected, 1.0 - SMALLEST)))
        return found

    def _distances(self) -> tuple[dict[str, int], int]:
        """The distance of every declared next use (1: the next request), and how many are known."""
        if self._seen[0] != self._uses.version:
            order = self._uses.order(WINDOW)
            distances: dict[str, int] = {}
            for distance, engine_id in enumerate(order, start=1):
                distances.setdefault(engine_id, distance)
            self._seen = (self._uses.version, distances, len(order))
        return self._seen[1], self._seen[2]

    def victims(self, need: Need) -> Sequence[str] | None:
        """The exact choice for the declared uses, where they are known and few enough engines."""
        if not self._uses or self._residents is None or len(need.shortage) != 1:
            return None
        names = [candidate.engine_id for candidate in need.candidates]
        seconds = self._residents.load_seconds(names)
        expected = self._forecaster.expectations(names, need.now)
        worth = {n: s * e for n, s, e in zip(names, seconds, expected, strict=True)}
        problem = LookaheadProblem.of(need, self._residents, self._uses.order(WINDOW), worth)
        return None if problem is None else self._lookahead.victims(problem)

    def export_state(self) -> dict[str, Any]:
        """What was learned."""
        return self._forecaster.export_state()

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Take over what was learned before a restart."""
        self._forecaster.import_state(state)
