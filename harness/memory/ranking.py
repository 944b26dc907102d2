"""How two rankings become one: reciprocal-rank fusion, weighed by the quality of passages. Pure.

A passage's score is the sum over rankings of its place's weight / (60 + its rank), times its quality.
Source: Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
learning methods", SIGIR 2009. The weights are ours: a ranking by words always has a first place, also where
that passage has nothing of the question but "how to do this". Such a place must not count like a vector's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from harness.given import a_list, a_number, refused

RRF_K: Final = 60
WHOLE_FROM: Final = 0.5
"""The share of a question's weight from which on a passage's place among the words counts in full."""
_LEAST_IDF: Final = 1e-6
"""FTS5's weight of a word that most passages have."""

Place = tuple[int, float]
"""A passage's id, and how much its place in a ranking counts, 0 to 1."""


def fused(rankings: Sequence[Sequence[Place]], quality: Mapping[int, float]) -> list[Place]:
    """Ids with their scores, the best first; ids without a quality are left out."""
    scores = dict[int, float]()
    for ranking in rankings:
        for rank, (one, weight) in enumerate(ranking, 1):
            if one in quality:
                scores[one] = scores.get(one, 0.0) + weight * quality[one] / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def idf(having: int, passages: int) -> float:
    """The weight of a word that so many passages have, as FTS5's BM25 counts it."""
    return max(_LEAST_IDF, math.log((passages - having + 0.5) / (having + 0.5)))


def place_weight(share: float, whole_from: float = WHOLE_FROM) -> float:
    """How much a place among the words counts whose passage has this share of the question's weight."""
    return min(1.0, share / whole_from)


def weights_of(given: tuple[float, float]) -> tuple[float, float]:
    """The weights of both rankings.

    Raises:
        InvalidRequest: they are not two numbers of 0 or more, or both are 0.
    """
    found = [a_number("A weight of a ranking", one, 0) for one in a_list("The weights", given)]
    if len(found) != 2 or not any(found):
        raise refused("The weights of words and vectors", given, "two numbers, not both 0")
    return found[0], found[1]
