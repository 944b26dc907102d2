"""The forecast: how soon each engine will be used, from all that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budget.errors import ConfigError
from budget.forecast.experts import Experts
from budget.forecast.histories import Histories
from budget.forecast.rates import Rates
from budget.forecast.transitions import Transitions

VERSION = 1
PACE_MEMORY = 0.02
SURE = 0.97
"""The weight above which the others are only asked to be judged."""
PATIENCE_UNITS = 6.0
"""After so many horizons without a use an answer is judged as if the use never came."""


class Forecaster:
    """Foretells E[discount**d], d being the number of requests until an engine's next use.

    That is between 0 (never) and 1 (now), and discount is set so that the horizon, 1 / (1 - discount),
    is the usual return distance of an engine.
    """

    def __init__(self) -> None:
        self._rates = Rates()
        self._histories = Histories()
        self._transitions = Transitions()
        self._experts = Experts(3)
        self._last_s: float | None = None
        self._pace_s = 1.0

    @property
    def count(self) -> int:
        """Requests seen."""
        return self._rates.count

    @property
    def discount(self) -> float:
        """What one request of distance multiplies."""
        return 1.0 - 1.0 / self._rates.unit

    @property
    def weights(self) -> dict[str, float]:
        """What each expert counts now."""
        names = ("rates", "histories", "transitions")
        return dict(zip(names, self._experts.weights, strict=True))

    def used(self, engine_id: str, now: float) -> None:
        """A request for an engine arrived."""
        if self._last_s is not None:
            self._pace_s += PACE_MEMORY * (now - self._last_s - self._pace_s)
        self._last_s = now
        self._experts.used(engine_id, self._rates.count + 1, self.discount)
        self._rates.used(engine_id)
        self._histories.used(engine_id, now)
        self._transitions.used(engine_id, self.discount)

    def expectation(self, engine_id: str, now: float) -> float:
        """E[discount**d] for this engine as of now, all experts weighed; they are judged later."""
        unit = self._rates.unit
        rate = self._rates.rate(engine_id)
        by_rate = self._soon(rate)
        patience = PATIENCE_UNITS * unit
        asked = not self._experts.wants(engine_id, self._rates.count, patience)
        if asked and self._experts.weights[0] > SURE:
            return by_rate
        answers = (
            by_rate,
            self._histories.chance(engine_id, now, unit * self._pace_s),
            self._transitions.expectation(engine_id, by_rate),
        )
        self._experts.asked(engine_id, self._rates.count, answers, patience)
        return self._experts.mixture(answers)

    def _soon(self, rate: float) -> float:
        """E[discount**d] when every request is for the engine with this probability."""
        discount = self.discount
        return rate * discount / (1.0 - discount + discount * rate)

    def export_state(self) -> dict[str, Any]:
        """What was learned, JSON-serialisable."""
        return {
            "version": VERSION,
            "pace_s": self._pace_s,
            "rates": self._rates.export_state(),
            "histories": self._histories.export_state(),
            "transitions": self._transitions.export_state(),
            "experts": self._experts.export_state(),
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
            fresh._experts.import_state(state["experts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"The saved forecast cannot be read: {type(error).__name__}: {error}.",
                hint="Delete it; keepwarm learns anew.",
            ) from None
        self._pace_s, self._rates, self._histories = fresh._pace_s, fresh._rates, fresh._histories
        self._transitions, self._experts = fresh._transitions, fresh._experts
        self._last_s = None
