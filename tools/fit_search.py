"""Finds small whole weights such that the largest of a few weighted sums is what was measured.

A compute buffer is the largest of the sums of tensors that live at the same time: the weights are
counts, so they are searched on the whole numbers, from a least-squares start, by single steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_GOOD_ENOUGH = 0.0012  # mean relative error
_MOST_SUMS = 6
_RESTARTS = 12
_SWEEPS = 60
_FLOOR_BYTES = 128 << 10  # smaller buffers count as this big: alignment is most of them


@dataclass(frozen=True)
class Fit:
    """The weights (sums x features) and the relative error of every sample."""

    weights: Matrix
    errors: Matrix


def independent_columns(features: Matrix) -> list[int]:
    """Columns that are not zero and not a multiple of an earlier one."""
    kept: list[int] = []
    for j in range(features.shape[1]):
        column = features[:, j]
        if not column.any():
            continue
        scales = ((column @ features[:, i]) / (features[:, i] @ features[:, i]) for i in kept)
        if any(
            np.allclose(column, features[:, i] * scale)
            for i, scale in zip(kept, scales, strict=True)
        ):
            continue
        kept.append(j)
    return kept


class _Search:
    def __init__(self, features: Matrix, measured: Matrix, rng: np.random.Generator) -> None:
        self.x, self.y, self.rng = features, measured, rng
        self.importance = 1 / np.maximum(measured, _FLOOR_BYTES)
        d = features.shape[1]
        steps = np.eye(d)
        pairs = [steps[i] - steps[j] for i in range(d) for j in range(d) if i != j]
        doubled = [2 * steps[i] - steps[j] for i in range(d) for j in range(d) if i != j]
        self.moves = np.array([*steps, *-steps, *(2 * steps), *pairs, *doubled])
        self.moved = self.moves @ features.T

    def loss(self, predicted: Matrix) -> float:
        """The mean relative error."""
        return float((np.abs(predicted - self.y) @ self.importance) / len(self.y))

    def start(self, rows: NDArray[np.int64]) -> Matrix:
        """Rounded least squares over some samples."""
        scaled = self.x[rows] * self.importance[rows, None]
        wanted = self.y[rows] * self.importance[rows]
        found, *_ = np.linalg.lstsq(scaled, wanted, rcond=1e-6)
        return np.asarray(np.clip(np.round(found), 0, 12))

    def improve(self, weights: Matrix) -> tuple[Matrix, float]:
        """Step by step to weights that no single step makes better."""
        best = self.loss((weights @ self.x.T).max(axis=0))
        for _ in range(_SWEEPS):
            before = best
            for row in self.rng.permutation(len(weights)):
                best = self._step(weights, row, best)
            if best >= before:
                break
        return weights, best

    def _step(self, weights: Matrix, row: int, best: float) -> float:
        others = np.delete(weights, row, axis=0)
        rest = (others @ self.x.T).max(axis=0) if len(others) else np.zeros(len(self.y))
        allowed = ((weights[row] + self.moves) >= 0).all(axis=1)
        tried = np.maximum(weights[row] @ self.x.T + self.moved[allowed], rest)
        losses = np.abs(tried - self.y) @ self.importance / len(self.y)
        at = int(losses.argmin())
        if losses[at] < best - 1e-9:
            weights[row] += self.moves[allowed][at]
            return float(losses[at])
        return best

    def some(self, share: float) -> NDArray[np.int64]:
        """Samples drawn at random."""
        count = max(self.x.shape[1] + 3, int(len(self.y) * share))
        return np.asarray(self.rng.choice(len(self.y), min(len(self.y), count), replace=False))


def fit(features: Matrix, measured: Matrix, rng: np.random.Generator) -> Fit:
    """Weights for samples (rows) x features (columns, bytes) and the bytes measured."""
    kept = independent_columns(features)
    search = _Search(features[:, kept], measured, rng)
    best = search.improve(search.start(np.arange(len(measured)))[None])
    for count in range(1, _MOST_SUMS + 1):
        for restart in range(_RESTARTS):
            if best[1] <= _GOOD_ENOUGH:
                break
            found = search.improve(_restart(search, best[0], count, grow=restart % 2 == 0))
            # Another sum must earn its place.
            if found[1] < best[1] * (0.9 if len(found[0]) > len(best[0]) else 1) - 1e-9:
                best = found
    weights = np.zeros((len(best[0]), features.shape[1]))
    weights[:, kept] = best[0]
    weights = _pruned(weights, features)
    predicted = (weights @ features.T).max(axis=0)
    return Fit(weights, (predicted - measured) / np.maximum(measured, _FLOOR_BYTES))


def _restart(search: _Search, known: Matrix, count: int, *, grow: bool) -> Matrix:
    if grow and count > 1:
        left = (search.y - (known @ search.x.T).max(axis=0)) * search.importance
        worst = np.argsort(-left)[: max(search.x.shape[1] + 2, len(left) // 5)]
        new = search.start(search.rng.choice(worst, max(3, len(worst) // 2), replace=False))
        return np.vstack([known, new])[-count:].copy()
    return np.vstack([search.start(search.some(0.2)) for _ in range(count)])


def _pruned(weights: Matrix, features: Matrix) -> Matrix:
    """Without sums that are the largest for no sample."""
    largest = (weights @ features.T).argmax(axis=0)
    counts = np.bincount(largest, minlength=len(weights))
    return np.asarray(weights[counts > 0])
