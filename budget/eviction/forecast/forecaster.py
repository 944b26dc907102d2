"""The forecast: how soon each engine will be used, from all that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budget.books.engines import Bookings, EngineRecord
from budget.books.residents import Residents
from budget.errors import ConfigError
from budget.eviction.forecast.experts import HALF_LIFE_UNITS, LRU, NAMES, Contest
from budget.eviction.forecast.figures import figure
from budget.eviction.forecast.histories import Histories
from budget.eviction.forecast.rates import Rates
from budget.eviction.forecast.transitions import Transitions

VERSION = 2
PACE_MEMORY = 0.02
SMALLEST = 1e-9
CERTAIN = 1.0 + SMALLEST
LRU_SHARE = 0.5
"""From this weight on recency alone decides."""
BATCH = 16
"""So many uses are learned in one go at most: no eviction has to wait for many."""
FIRST_REFRESH, REFRESH = 16, 64
"""After so many requests (the first times, and later) the time scales follow the usual return distance."""


class Forecaster:
    """Foretells E[discount**d], d being the number of requests until an engine's next use.

    That is between 0 (never) and 1 (now), and discount is set so that the horizon, 1 / (1 - discount),
    is the usual return distance of an engine.

    Uses are noted as they come and learned in one go before anything is asked: a hit, which asks
    nothing, costs next to nothing, and what is answered is the same.
    """

    def __init__(self) -> None:
        self._rates = Rates()
        self._histories = Histories()
        self._transitions = Transitions()
        experts = (self._rates.lasts, self._by_rate, self._by_history, self._by_context)
        self._contest = Contest(experts)
        self._residents: Residents | None = None
        self._new_ids: list[str] = []
        self._new_times: list[float] = []
        """The uses that are not learned yet."""
        self._refresh_every = self._refresh_in = FIRST_REFRESH
        self._room = min(BATCH, FIRST_REFRESH)
        """So many uses may be noted before they are learned."""
        self._last_s: float | None = None
        self._pace_s = 1.0
        self._now = 0.0
        self._rescale()

    def attach(self, residents: Residents) -> None:
        """Watch how the experts would do on these books."""
        self._residents = residents
        self._contest.attach(residents)

    @property
    def count(self) -> int:
        """Requests seen."""
        return self._rates.count + len(self._new_ids)

    @property
    def weights(self) -> dict[str, float]:
        """What each expert counts now."""
        return dict(zip(NAMES, self._contest.weights, strict=True))

    @property
    def followed(self) -> str:
        """The experts whose weighed estimates `odds` gives, and their shares of it."""
        shares = zip(NAMES[1:], self._contest.shares, strict=True)
        told = sorted(((share, name) for name, share in shares if share), reverse=True)
        return ", ".join(f"{name} {share:.0%}" for share, name in told)

    @property
    def lru_s(self) -> float:
        """The load seconds that LRU would have paid since the start."""
        return self._contest.lru_s

    @property
    def lru_held(self) -> Mapping[str, Bookings]:
        """The engines that LRU would have resident."""
        return self._contest.lru_held

    @property
    def recency_rules(self) -> bool:
        """Whether LRU did so well of late that its order is followed."""
        return self._contest.weights[LRU] > LRU_SHARE

    def used(self, engine_id: str, now: float) -> None:
        """A request for an engine arrived."""
        self._now = now
        self._new_ids.append(engine_id)
        self._new_times.append(now)
        if len(self._new_ids) == self._room:
            self._learn()
        if self._contest.misses(engine_id):
            self._learn()
            self._contest.used(engine_id)

    def booked(self, engine: EngineRecord, now: float) -> None:
        """A load of this engine starts."""
        self._now = now
        self._learn()
        self._contest.booked(engine)

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """What was learned of an engine holds for the one that runs its model now."""
        self._learn()
        for before, after in successors.items():
            self._rates.renamed(before, after)
            self._histories.renamed(before, after)
            self._transitions.renamed(before, after)
        self._contest.reconfigured()

    def _learn(self) -> None:
        """Take in the uses that are new since the last time."""
        ids, times = self._new_ids, self._new_times
        if not ids:
            return
        self._rates.learn(ids)
        self._histories.learn(ids, times)
        self._transitions.learn(ids)
        last_s, pace_s = self._last_s, self._pace_s
        for now in times:
            if last_s is not None:
                pace_s += PACE_MEMORY * (now - last_s - pace_s)
            last_s = now
        self._last_s, self._pace_s = last_s, pace_s
        self._refresh_in -= len(ids)
        ids.clear()
        times.clear()
        self._room = min(BATCH, self._refresh_in)
        if self._refresh_in == 0:
            self._refresh()

    def _refresh(self) -> None:
        """Let all time scales follow the usual return distance, and the past count less."""
        self._rates.refresh()
        self._rescale()
        self._contest.fade(self._refresh_every / (self._rates.unit * HALF_LIFE_UNITS))
        self._schedule()

    def _schedule(self) -> None:
        self._refresh_every = min(max(FIRST_REFRESH, self._rates.count), REFRESH)
        self._refresh_in = self._refresh_every
        self._room = min(BATCH, self._refresh_in)

    def _rescale(self) -> None:
        unit = self._rates.unit
        self.discount = 1.0 - 1.0 / unit
        """What one request of distance multiplies."""
        self._per_rate = unit - 1.0
        self._transitions.discounted(self.discount)

    # What the experts say: the discounted number of expected uses, p / (1 - p)

    def _rated(self, engine_ids: Sequence[str]) -> list[float]:
        per_rate = self._per_rate
        return [rate * per_rate for rate in self._rates.rates(engine_ids)]

    def _timed(self, engine_ids: Sequence[str], now: float) -> list[float]:
        horizon_s = self._rates.unit * self._pace_s
        chances = self._histories.chances(engine_ids, now, horizon_s)
        return [chance / (CERTAIN - chance) for chance in chances]

    def _following(self, engine_id: str, rated: float) -> float:
        chance = self._transitions.expectation(engine_id, rated / (1.0 + rated))
        return chance / (CERTAIN - chance)

    # What each would lose, in load seconds, for the contest

    def _by_rate(self, engine_ids: Sequence[str]) -> list[float]:
        return self._at_stake(engine_ids, self._rated(engine_ids))

    def _by_history(self, engine_ids: Sequence[str]) -> list[float]:
        return self._at_stake(engine_ids, self._timed(engine_ids, self._now))

    def _by_context(self, engine_ids: Sequence[str]) -> list[float]:
        odds = map(self._following, engine_ids, self._rated(engine_ids))
        return self._at_stake(engine_ids, list(odds))

    def _at_stake(self, engine_ids: Sequence[str], odds: Sequence[float]) -> list[float]:
        if self._residents is None:
            return [0.0] * len(engine_ids)
        seconds = self._residents.load_seconds(engine_ids)
        return [s * (o + SMALLEST) for s, o in zip(seconds, odds, strict=True)]

    # All of them weighed

    def odds(self, engine_ids: Sequence[str], now: float) -> list[float]:
        """The discounted number of expected uses of each engine, p / (1 - p), all experts weighed."""
        self._learn()
        by_rate, by_history, by_context = self._contest.shares
        rated = self._rated(engine_ids)
        found = [by_rate * odds for odds in rated]
        if by_history:
            timed = self._timed(engine_ids, now)
            found = [f + by_history * odds for f, odds in zip(found, timed, strict=True)]
        if by_context:
            following = map(self._following, engine_ids, rated)
            found = [f + by_context * odds for f, odds in zip(found, following, strict=True)]
        return found

    def expectations(self, engine_ids: Sequence[str], now: float) -> list[float]:
        """E[discount**d] for each engine as of now, all experts weighed."""
        return [odds / (1.0 + odds) for odds in self.odds(engine_ids, now)]

    def export_state(self) -> dict[str, Any]:
        """What was learned, JSON-serialisable."""
        self._learn()
        return {
            "version": VERSION,
            "pace_s": self._pace_s,
            "rates": self._rates.export_state(),
            "histories": self._histories.export_state(),
            "transitions": self._transitions.export_state(),
            "experts": self._contest.export_state(),
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `export_state` gave.

        Raises:
            ConfigError: the state is damaged or of another version; nothing was taken over.
        """
        fresh = Forecaster()
        try:
            if state["version"] != VERSION:
                raise ValueError(f"version {state['version']!r}, not {VERSION}")
            fresh._take_in(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"The saved forecast cannot be read: {type(error).__name__}: {error}.",
                hint="Delete it; keepwarm learns anew.",
            ) from None
        self._take_in(state)

    def _take_in(self, state: Mapping[str, Any]) -> None:
        """Raises LookupError, TypeError, ValueError or AttributeError when the state is damaged."""
        self._pace_s = figure(state["pace_s"])
        self._rates.import_state(state["rates"])
        self._histories.import_state(state["histories"])
        self._transitions.import_state(state["transitions"])
        self._contest.import_state(state["experts"])
        self._new_ids.clear()
        self._new_times.clear()
        self._last_s = None
        self._rescale()
        self._schedule()
