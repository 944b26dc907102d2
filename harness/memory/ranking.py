"""How two rankings become one: reciprocal-rank fusion, weighed by the quality of passages. Pure.

A passage's score is the sum over rankings of 1 / (60 + its rank), times its quality. Source: Cormack,
Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
SIGIR 2009.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

RRF_K: Final = 60

_WORD: Final = re.compile(r"\w+")


def fused(
    rankings: Sequence[Sequence[int]], quality: Mapping[int, float]
) -> list[tuple[int, float]]:
    """Ids with their scores, the best first; ids without a quality are left out."""
    scores = dict[int, float]()
    for ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            if one in quality:
                scores[one] = scores.get(one, 0.0) + quality[one] / (RRF_K + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def words_query(text: str) -> str:
    """A query for FTS5: any of the words, each quoted, so that no sign of a question is an operator."""
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(_WORD.findall(text.casefold())))
