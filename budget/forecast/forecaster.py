"""The forecast: how soon each engine will be used, from all that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budget.engines import EngineRecord
from budget.errors import ConfigError
from budget.forecast.experts import HALF_LIFE_UNITS, LRU, NAMES, Contest
from budget.forecast.histories import Histories
from budget.forecast.rates import REFRESH, Rates
from budget.forecast.transitions import Transitions
from budget.residents import Residents

VERSION = 2
PACE_MEMORY = 0.02
SMALLEST = 1e-9
CERTAIN = 1.0 + SMALLEST
LRU_SHARE = 0.5
"""From this weight on recency alone decides."""


class Forecaster:
    """Foretells E[discount**d], d being the number of requests until an engine's next use.

    That is between 0 (never) and 1 (now), and discount is set so that the horizon, 1 / (1 - discount),
    is the usual return distance of an engine.
    """

    def __init__(self) -> None:
        self._rates = Rates()
        self._histories = Histories()
        self._transitions = Transitions()
        self._contest = Contest()
        self._residents: Residents | None = None
        self._last_s: float | None = None
        self._pace_s = 1.0
        self._now = 0.0
        self._refresh()

    def attach(self, residents: Residents) -> None:
        """Watch how the experts would do on these books."""
        self._residents = residents
        self._contest.attach(residents)

    @property
    def count(self) -> int:
        """Requests seen."""
        return self._rates.count

    @property
    def weights(self) -> dict[str, float]:
        """What each expert counts now."""
        return dict(zip(NAMES, self._contest.weights, strict=True))

    @property
    def recency_rules(self) -> bool:
        """Whether LRU did so well of late that its order is followed."""
        return self._contest.weights[LRU] > LRU_SHARE

    def used(self, engine_id: str, now: float) -> None:
        """A request for an engine arrived."""
        if self._last_s is not None:
            self._pace_s += PACE_MEMORY * (now - self._last_s - self._pace_s)
        self._last_s = self._now = now
        self._rates.used(engine_id)
        self._histories.used(engine_id, now)
        self._transitions.used(engine_id)
        if self._rates.count % REFRESH == 0:
            self._refresh()
        self._contest.used(engine_id, self._losses)

    def booked(self, engine: EngineRecord, now: float) -> None:
        """A load of this engine starts."""
        self._now = now
        self._contest.booked(engine, self._losses)

    def _refresh(self) -> None:
        unit = self._rates.unit
        self.discount = 1.0 - 1.0 / unit
        """What one request of distance multiplies."""
        self._odds = unit - 1.0
        self._transitions.discounted(self.discount)
        self._contest.fade(REFRESH / (unit * HALF_LIFE_UNITS))

    def _losses(self, engine_id: str) -> tuple[float, ...]:
        """Every expert's load seconds at stake for an engine, in the order of the contest."""
        odds = self._rates.rate(engine_id) * self._odds
        chance = self._histories.chance(engine_id, self._now, self._rates.unit * self._pace_s)
        follows = self._transitions.expectation(engine_id, odds / (1.0 + odds))
        seconds = 0.0
        if self._residents is not None and engine_id in self._residents:
            seconds = self._residents[engine_id].option.load_seconds
        return (
            self._rates.last(engine_id),
            seconds * (odds + SMALLEST),
            seconds * (chance / (CERTAIN - chance) + SMALLEST),
            seconds * (follows / (CERTAIN - follows) + SMALLEST),
        )

    def odds(self, engine_id: str, now: float) -> float:
        """The discounted number of expected uses, p / (1 - p), all experts weighed."""
        by_rate, by_history, by_context = self._contest.shares
        odds = self._rates.rate(engine_id) * self._odds
        value = by_rate * odds
        if by_history:
            chance = self._histories.chance(engine_id, now, self._rates.unit * self._pace_s)
            value += by_history * chance / (CERTAIN - chance)
        if by_context:
            chance = self._transitions.expectation(engine_id, odds / (1.0 + odds))
            value += by_context * chance / (CERTAIN - chance)
        return value

    def expectation(self, engine_id: str, now: float) -> float:
        """E[discount**d] for this engine as of now, all experts weighed."""
        odds = self.odds(engine_id, now)
        return odds / (1.0 + odds)

    def export_state(self) -> dict[str, Any]:
        """What was learned, JSON-serialisable."""
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
            fresh._pace_s = float(state["pace_s"])
            fresh._rates.import_state(state["rates"])
            fresh._histories.import_state(state["histories"])
            fresh._transitions.import_state(state["transitions"])
            Contest().import_state(state["experts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"The saved forecast cannot be read: {type(error).__name__}: {error}.",
                hint="Delete it; keepwarm learns anew.",
            ) from None
        self._pace_s, self._rates, self._histories = fresh._pace_s, fresh._rates, fresh._histories
        self._transitions = fresh._transitions
        self._refresh()
        self._contest.import_state(state["experts"])
        self._last_s = None
