"""What is known of the future: how often, when and after what engines are used, and what was declared."""

from budget.eviction.forecast.forecaster import Forecaster
from budget.eviction.forecast.guard import Guard
from budget.eviction.forecast.lookahead import Lookahead, LookaheadProblem

__all__ = ["Forecaster", "Guard", "Lookahead", "LookaheadProblem"]
