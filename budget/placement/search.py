"""The search over choices: from several starts, one or two models changed at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.placement.choices import BytePools, ModelOption, option_at, worthwhile_layers
from budget.placement.cost import Demand, expected_seconds
from budget.placement.tables import ModelChoices, Variant

_ROUNDS: Final = 200
_EVERYTHING: Final = 4096
"""Assignments that are all tried where there are no more of them: that is quicker than the search."""
_PAIRS: Final = 4096
"""Pairs of moves that are all tried where there are no more of them."""
_BETTER: Final = 1.0 - 1e-9

Numbers = NDArray[np.int64]


class Search:
    """Choices of models, and the cheapest assignment that moves of one or two models reach."""

    def __init__(
        self,
        models: Sequence[ModelChoices],
        choices: Sequence[Sequence[ModelOption]],
        pools: BytePools,
        requests_per_s: float,
    ) -> None:
        self._models = models
        self._pools = pools
        self._choices = [list(row) for row in choices]
        self._limits = np.array(pools.limits, dtype=float)
        rates = np.array([model.rate for model in models], dtype=float)
        self._load = Demand(
            rates / rates.sum() * requests_per_s,
            np.array([model.weight / model.alone_s for model in models], dtype=float),
            np.array([model.passes for model in models], dtype=float),
            np.array([model.load_s for model in models], dtype=float),
            np.array([model.pinned for model in models], dtype=bool),
        )
        self._fill()
        self._best: tuple[Numbers, float] = (np.zeros(len(models), dtype=np.int64), float("inf"))

    def _fill(self) -> None:
        most = max(len(row) for row in self._choices)
        shape = (len(self._models), most)
        self._bytes = np.zeros((*shape, len(self._limits)))
        self._token_s = np.zeros(shape)
        for number, row in enumerate(self._choices):
            self._bytes[number, : len(row)] = [option.pool_bytes for option in row]
            self._token_s[number, : len(row)] = [option.token_s for option in row]
        moves = [(n, i) for n, row in enumerate(self._choices) for i in range(len(row))]
        self._moves = np.array(moves, dtype=np.int64).T
        # A pool that holds everything whatever is chosen decides nothing.
        self._tight = np.flatnonzero(self._bytes.max(axis=1).sum(axis=0) > self._limits)

    def run(self) -> tuple[list[ModelOption], float]:
        """The cheapest assignment found, and its expected seconds (infinite: none is possible)."""
        counts = [len(row) for row in self._choices]
        if prod(counts) <= _EVERYTHING:
            rows = np.indices(counts).reshape(len(counts), -1).T
            self._best = self._cheapest(rows, float("inf")) or self._best
        else:
            for start in self._starts():
                self._descend(start)
        return self._options(), self._best[1]

    def refine(
        self, variants: Sequence[Variant], min_gain: float
    ) -> tuple[list[ModelOption], float]:
        """Try every number of layers for the models that are not whole; then all moves again."""
        added = False
        for number, variant in enumerate(variants):
            current = self._choices[number][int(self._best[0][number])]
            if current.kind in ("whole", "spread") or self._models[number].n_gpu_layers is not None:
                continue
            for device in self._pools.devices:
                rows = worthwhile_layers(variant, self._pools, device, min_gain)
                known = {(o.devices, o.n_gpu_layers) for o in self._choices[number]}
                new = [k for k in rows if ((device,), k) not in known]
                self._choices[number] += [option_at(variant, self._pools, device, k) for k in new]
                added = added or bool(new)
        if added:
            self._fill()
            self._descend(self._best[0])
        return self._options(), self._best[1]

    def _options(self) -> list[ModelOption]:
        return [row[int(i)] for row, i in zip(self._choices, self._best[0], strict=True)]

    def _starts(self) -> list[Numbers]:
        """Everything at its first choice or its last, pinned models packed, one model at its first."""
        count = len(self._models)
        first = np.zeros(count, dtype=np.int64)
        last = np.array([len(row) - 1 for row in self._choices], dtype=np.int64)
        alone = [row for row in np.where(np.eye(count, dtype=bool), first, last) if row.any()]
        packed = [self._packed(last)] if self._load.pinned.any() else []
        return [first, last, *packed, *alone]

    def _packed(self, last: Numbers) -> Numbers:
        packed = last.copy()
        room = self._limits.copy()
        for number in np.flatnonzero(self._load.pinned):
            for i in range(len(self._choices[number])):
                if (self._bytes[number, i] <= room).all():
                    room -= self._bytes[number, i]
                    packed[number] = i
                    break
        return packed

    def _costs(self, rows: Numbers) -> NDArray[np.float64]:
        models = np.arange(rows.shape[1])
        n_bytes = self._bytes[models, rows][:, :, self._tight]
        token_s = self._token_s[models, rows]
        return expected_seconds(self._load, n_bytes, token_s, self._limits[self._tight])

    def _descend(self, start: Numbers) -> None:
        here, cost = start, float(self._costs(start[None, :])[0])
        for _ in range(_ROUNDS):
            found = self._several(here, cost)
            if found is None:
                found = self._cheapest(self._exchanges(here), cost)
            if found is None:
                break
            here, cost = found
        if cost < self._best[1] * _BETTER:
            self._best = (here, cost)

    def _several(self, here: Numbers, cost: float) -> tuple[Numbers, float] | None:
        """The best moves of single models, as many of them together as is cheapest."""
        rows = self._single_moves(here)
        costs = self._costs(rows)
        together = [here]
        moved: set[int] = set()
        for number in np.argsort(costs, kind="stable"):
            model = int(self._moves[0][number])
            if not costs[number] < cost * _BETTER:
                break
            if model not in moved:
                moved.add(model)
                row = together[-1].copy()
                row[model] = self._moves[1][number]
                together.append(row)
        return self._cheapest(np.array(together[1:]), cost)

    def _cheapest(self, rows: Numbers, cost: float) -> tuple[Numbers, float] | None:
        if not len(rows):
            return None
        costs = self._costs(rows)
        number = int(costs.argmin())
        found = float(costs[number])
        better = found < cost * _BETTER if cost != float("inf") else found < cost
        return (rows[number], found) if better else None

    def _single_moves(self, here: Numbers) -> Numbers:
        models, options = self._moves
        rows = np.repeat(here[None, :], len(models), axis=0)
        rows[np.arange(len(models)), models] = options
        return rows

    def _exchanges(self, here: Numbers) -> Numbers:
        """Two models to any of their choices; where there are too many, the second one to its last."""
        models, options = self._moves
        every = np.arange(len(models))
        few = len(every) ** 2 <= 2 * _PAIRS
        lasts = np.append(np.flatnonzero(np.diff(models)), len(models) - 1)
        first, second = np.meshgrid(every, every if few else lasts)
        changed = options != here[models]
        both = changed[first] & changed[second] & (models[first] != models[second])
        # Of all pairs, each is tried once.
        both &= (first < second) | (not few)
        first, second = first[both], second[both]
        rows = np.repeat(here[None, :], len(first), axis=0)
        number = np.arange(len(first))
        rows[number, models[first]] = options[first]
        rows[number, models[second]] = options[second]
        return rows
