"""The architectures that the closed form knows; another one is refused, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from budget.errors import MeasurementFailed
from budget.estimate.compute_data import BUILD, SUMS

Sums = Mapping[str, tuple[str, ...]]

FITTED_BUILD: Final = BUILD
"""The llama.cpp build whose dry runs the compute buffers were fitted to."""

ARCHITECTURES: Final[Mapping[str, Sums]] = SUMS
"""By `general.architecture`: the sums of each `side/place of the split/kernels`."""

NORM_FIRST: Final = frozenset(ARCHITECTURES) - {"bert", "nomic-bert"}
"""Whose layers begin with a norm of what the layer before gives."""


def architecture(name: str) -> Sums:
    """What is known of an architecture's compute buffers.

    Raises:
        MeasurementFailed: nothing is. Facts: `architecture`, `known`.
    """
    found = ARCHITECTURES.get(name)
    if found is None:
        raise MeasurementFailed(
            f"there is no closed form for the architecture {name!r}.",
            hint="Measure it by dry run (source auto or dry-run).",
            architecture=name,
            known=sorted(ARCHITECTURES),
        )
    return found
