"""Weighing experts online: who foretold best what evictions asked, counts most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MEMORY = 0.995
"""How much of the past loss counts after each judgement."""
SMALLEST = 1e-4
FLOOR = 0.01
"""The least weight of an expert, so that it can come back."""


class Experts:
    """A Bayesian mixture of probabilities, judged by logarithmic loss with a fading memory.

    Every time an eviction asks about an engine, each expert's answer is kept until the engine is used
    (or for long enough that it does not matter any more) and then compared with what came.
    """

    __slots__ = ("_losses", "_open", "_weights")

    def __init__(self, n_experts: int) -> None:
        self._losses = [0.0] * n_experts
        self._weights = [1.0 / n_experts] * n_experts
        self._open: dict[str, tuple[int, tuple[float, ...]]] = {}

    @property
    def weights(self) -> Sequence[float]:
        """The experts' weights; their sum is 1."""
        return self._weights

    def mixture(self, answers: Sequence[float]) -> float:
        """The weighted mean of the experts' probabilities."""
        return sum(w * p for w, p in zip(self._weights, answers, strict=True))

    def wants(self, engine_id: str, count: int, patience: float) -> bool:
        """Whether answers about an engine would be kept now, to be judged later."""
        pending = self._open.get(engine_id)
        return pending is None or count - pending[0] > patience

    def asked(
        self, engine_id: str, count: int, answers: tuple[float, ...], patience: float
    ) -> None:
        """Keep the answers about an engine, given at request number `count`."""
        pending = self._open.get(engine_id)
        if pending is None:
            self._open[engine_id] = (count, answers)
        elif count - pending[0] > patience:
            self._judge(pending[1], 0.0)
            self._open[engine_id] = (count, answers)

    def used(self, engine_id: str, count: int, discount: float) -> None:
        """An engine is used: judge what was said about it."""
        pending = self._open.pop(engine_id, None)
        if pending is not None:
            self._judge(pending[1], discount ** (count - pending[0]))

    def _judge(self, answers: tuple[float, ...], truth: float) -> None:
        losses = self._losses
        for number, answer in enumerate(answers):
            p = min(1.0 - SMALLEST, max(SMALLEST, answer))
            loss = -(truth * math.log(p) + (1.0 - truth) * math.log(1.0 - p))
            losses[number] = losses[number] * MEMORY + loss
        least = min(losses)
        raw = [math.exp(least - loss) + FLOOR for loss in losses]
        total = sum(raw)
        self._weights = [value / total for value in raw]

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"losses": list(self._losses), "weights": list(self._weights)}

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        losses = [float(value) for value in state["losses"]]
        weights = [float(value) for value in state["weights"]]
        if not len(losses) == len(weights) == len(self._losses):
            raise ValueError(f"{len(losses)} losses and {len(weights)} weights")
        self._losses, self._weights = losses, weights
        self._open.clear()
