"""What a model's file has to be for the role that the configuration gives it."""

from __future__ import annotations

from typing import Final, Protocol

from budget.errors import RoleViolation

EVALUATOR_FLOOR_BITS: Final = 8.5
"""Bits per weight of Q8_0: a coarser evaluator would judge its own rounding errors, too."""


class Precision(Protocol):
    """How exact a model's weights are; None for a remote model, whose file cannot be read here."""

    @property
    def quantization(self) -> str | None:
        """The main type of its tensors."""

    @property
    def min_bits_per_weight(self) -> float | None:
        """Bits per weight of its coarsest matrix."""


def is_too_coarse(role: str | None, found: Precision) -> bool:
    """Whether a model is an evaluator under the floor."""
    bits = found.min_bits_per_weight
    return role == "evaluator" and bits is not None and bits < EVALUATOR_FLOOR_BITS


def check_precision(name: str, role: str | None, found: Precision) -> None:
    """Refuse an evaluator under the floor.

    Raises:
        RoleViolation: with the figures of its coarsest matrix.
    """
    if not is_too_coarse(role, found):
        return
    bits = found.min_bits_per_weight
    raise RoleViolation(
        f"The evaluator {name} is {found.quantization} by its tensors: its coarsest "
        f"matrix has {bits:.4g} bits per weight, an evaluator needs at least "
        f"{EVALUATOR_FLOOR_BITS} (Q8_0).",
        hint=f"Give [models.{name}] a file of Q8_0, F16, BF16 or F32.",
        model=name,
        role="evaluator",
        quantization=found.quantization,
        bits_per_weight=bits,
        needed_bits_per_weight=EVALUATOR_FLOOR_BITS,
    )
