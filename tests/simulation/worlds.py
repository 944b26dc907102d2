"""Small worlds for the simulator: models by name and size, arrivals by letters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from budget.simulation import Arrival, SimulatedModel, Trial

SIZES = {"a": 4, "b": 3, "c": 2, "d": 1, "e": 5}


def world(sizes: dict[str, int]) -> dict[str, SimulatedModel]:
    """Models of these bytes that load in 1 s + 1 s a byte, and answer in one second a token."""
    return {
        name: SimulatedModel(name, size, 1.0, 1.0, prompt_tokens_per_s=1.0, decode_tokens_per_s=1.0)
        for name, size in sizes.items()
    }


def letters(text: str, gap_s: float = 10.0) -> list[Arrival]:
    """One arrival a letter, evenly spaced, without tokens."""
    return [Arrival(n * gap_s, letter) for n, letter in enumerate(text)]


def random_letters(seed: int, length: int, names: Sequence[str] = tuple(SIZES)) -> list[Arrival]:
    """Arrivals at random, some models more popular than others."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, len(names) + 1, dtype=float)
    chosen = rng.choice(list(names), length, p=weights / weights.sum())
    return letters("".join(chosen))


def trial(text: str | list[Arrival], budget: int, **more: object) -> Trial:
    """A trial over the small world."""
    arrivals = letters(text) if isinstance(text, str) else text
    return Trial(arrivals, world(SIZES), budget, **more)  # type: ignore[arg-type]
