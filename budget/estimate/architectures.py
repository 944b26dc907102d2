"""What the closed form knows of each architecture; another one is refused, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from budget.errors import MeasurementFailed


@dataclass(frozen=True, slots=True)
class Architecture:
    """The peak of the compute graph per token, in floats, as multiples of the model's dimensions.

    Feed-forward peak: `ffn_ff` x n_ff + `ffn_embd` x n_embd (with experts: rows of the experts that
    are used). Attention peak: `flash_embd` x n_embd + `flash_q` x (heads x head size) with flash
    attention; without it, `attn_embd` and `attn_q` and one score per head and cell.
    Fitted to dry runs of llama-cpp-python 0.3.36 (ggml/src/ggml-alloc.c decides what overlaps).
    """

    ffn_ff: int = 3
    ffn_embd: int = 4
    flash_embd: int = 2
    flash_q: int = 2
    attn_embd: int = 3
    attn_q: int = 2


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "qwen3moe": Architecture(),
}
"""By `general.architecture`."""


def architecture(name: str) -> Architecture:
    """What is known of an architecture.

    Raises:
        MeasurementFailed: nothing is. Facts: `architecture`, `known`.
    """
    found = ARCHITECTURES.get(name)
    if found is None:
        raise MeasurementFailed(
            f"there is no closed form for the architecture {name!r}.",
            hint="Measure it by dry run.",
            architecture=name,
            known=sorted(ARCHITECTURES),
        )
    return found
