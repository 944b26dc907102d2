"""Which engines leave for bytes of one device, where nearly every eviction is decided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

EXACT_LIMIT = 12
"""Up to this many candidates the least total loss is found exactly: every set is tried."""
FEW = 6
"""Up to this many, plain loops are faster than arrays."""

Row = tuple[float, int, int]
"""A candidate: what losing it costs, its place among all (equals leave in that order), its bytes."""


def set_of_least_loss(
    losses: Iterable[float], sizes: Sequence[int], missing: int, *, ordered: bool
) -> list[int] | None:
    """Which candidates leave so that `missing` bytes come free.

    Args:
        losses: what losing each candidate costs.
        sizes: the bytes that each one frees; one that frees none is left alone.
        missing: bytes, above 0.
        ordered: take strictly from the least loss up, instead of the least total loss.

    Returns:
        The victims' places among the candidates, least loss first, with no member whose bytes are
        not needed; None when even all candidates together free too little.
    """
    if sum(sizes) < missing:
        return None
    rows = sorted(zip(losses, range(len(sizes)), sizes, strict=True))
    if not all(sizes):
        rows = [row for row in rows if row[2]]
    if ordered:
        chosen = _first_enough(rows, missing)
    elif len(rows) <= FEW:
        chosen = _of_few(rows, missing)
    elif len(rows) <= EXACT_LIMIT:
        chosen = _of_several(rows, missing)
    else:
        chosen = _of_many(rows, missing)
    return [place for _, place, _ in chosen]


def _first_enough(rows: Sequence[Row], missing: int) -> list[Row]:
    """The shortest prefix that frees enough, without redundant members: the dearest stay first."""
    chosen = []
    excess = -missing
    for row in rows:
        if excess >= 0:
            break
        chosen.append(row)
        excess += row[2]
    if excess:
        for row in sorted(chosen, key=lambda row: (-row[0], row[1])):
            if row[2] <= excess:
                chosen.remove(row)
                excess -= row[2]
    return sorted(chosen)


def _of_few(rows: Sequence[Row], missing: int) -> list[Row]:
    """The set of least loss. It comes after its subsets, so that it has no redundant member."""
    n_bytes, losses = [0], [0.0]
    best, best_loss = 0, math.inf
    for loss, _, size in rows:
        n_bytes += [known + size for known in n_bytes]
        losses += [known + loss for known in losses]
    for chosen, freed in enumerate(n_bytes):
        if freed >= missing and losses[chosen] < best_loss:
            best, best_loss = chosen, losses[chosen]
    return [row for number, row in enumerate(rows) if best >> number & 1]


def _of_several(rows: Sequence[Row], missing: int) -> list[Row]:
    """As `_of_few`, with arrays of shape (2**len(rows),)."""
    n_bytes, losses = np.zeros(1, dtype=np.int64), np.zeros(1)
    for loss, _, size in rows:
        n_bytes = np.concatenate([n_bytes, n_bytes + size])
        losses = np.concatenate([losses, losses + loss])
    best = int(np.argmin(np.where(n_bytes >= missing, losses, math.inf)))
    return [row for number, row in enumerate(rows) if best >> number & 1]


def _of_many(rows: Sequence[Row], missing: int) -> list[Row]:
    """The better of two guesses: the least loss by byte first, or the least loss."""
    by_density = sorted(rows, key=lambda row: row[0] / min(row[2], missing))
    guesses = (_first_enough(by_density, missing), _first_enough(rows, missing))
    return min(guesses, key=lambda chosen: sum([row[0] for row in chosen]))
