"""The simulator: a trace replayed through the production core, with a simulated clock and engines.

Pure, as the core is: rows and models are given as data, times are computed.
"""

from budget.simulation.compare import Comparison, Result, Trial, compare
from budget.simulation.metrics import Metrics, Summary
from budget.simulation.replay import Replay
from budget.simulation.requests import COLUMNS, Arrival, parse_rows, parse_runs
from budget.simulation.simulated_models import SimulatedModel, parse_models

__all__ = [
    "COLUMNS",
    "Arrival",
    "Comparison",
    "Metrics",
    "Replay",
    "Result",
    "SimulatedModel",
    "Summary",
    "Trial",
    "compare",
    "parse_models",
    "parse_rows",
    "parse_runs",
]
