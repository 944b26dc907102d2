"""What is known of the future: how often, when and after what engines are used, and what was declared."""

from budget.forecast.forecaster import Forecaster
from budget.forecast.guard import Guard
from budget.forecast.lookahead import Lookahead, Problem

__all__ = ["Forecaster", "Guard", "Lookahead", "Problem"]
