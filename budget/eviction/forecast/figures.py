"""Figures of a saved state that later sums, quotients and powers survive."""

from __future__ import annotations

import math
from typing import Final

MOST: Final = 1e15
"""Far more than any count, weight or number of seconds comes to."""


def figure(value: object, least: float = 0.0, most: float = MOST) -> float:
    """A saved number as a float.

    Raises:
        ValueError: it is no number, or not between the bounds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"a {type(value).__name__} where a number belongs")
    if not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{value:.3g} is not between {least:g} and {most:g}")
    return float(value)
