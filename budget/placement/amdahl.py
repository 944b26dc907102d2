"""Amdahl's law: what a split can gain at most."""

from __future__ import annotations

from budget.errors import ConfigError


def speed_up(share: float, factor: float) -> float:
    """How much faster a token is when `share` of its time (0 to 1) becomes `factor` times faster.

    1 / ((1 - share) + share / factor). At a factor of 10: 1.82 for .50, 3.08 for .75, 5.26 for
    .90, 6.90 for .95.

    Raises:
        ConfigError: the share is not within 0 to 1, or the factor is not above 0.
    """
    if not 0.0 <= share <= 1.0 or not factor > 0.0:
        raise ConfigError(
            f"a share of {share:g} made {factor:g} times faster has no meaning.",
            hint="The share is 0 to 1, the factor above 0.",
            share=share,
            factor=factor,
        )
    return 1.0 / ((1.0 - share) + share / factor)


def sentence(share: float, factor: float) -> str:
    """The law with the numbers of one split, for people."""
    return (
        f"Amdahl: {share:.0%} of the CPU's time moved to a side {factor:.1f} times as fast gives "
        f"{speed_up(share, factor):.2f} times, not {factor:.1f}"
    )
