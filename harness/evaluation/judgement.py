"""What judges found of one answer: each one's scores, and all of them together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.evaluation.rubric import Score

SPREAD: Final = 2.0
"""Judges whose composites differ by more than this disagree."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's scores of one answer, with the composite that is computed from them."""

    judge: str
    scores: Mapping[str, Score]
    composite: float
    seconds: float = 0.0
    cold: bool = False
    cut: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judgement:
        """What `dataclasses.asdict` made of it."""
        scores = {n: Score(s["score"], s["reasons"]) for n, s in data["scores"].items()}
        return cls(**{**data, "scores": scores})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The judgements of all judges on one answer.

    A dimension's score is the median over the judges; `composite` is the median of their composites, and
    `spread` is the largest of these less the smallest.
    """

    judgements: tuple[Judgement, ...]
    disagreement_over: float = SPREAD

    @property
    def scores(self) -> dict[str, float]:
        """The median score of each dimension."""
        return {
            name: statistics.median(judgement.scores[name].score for judgement in self.judgements)
            for name in self.judgements[0].scores
        }

    @property
    def composite(self) -> float:
        """The median composite, 0 to 10."""
        return statistics.median(judgement.composite for judgement in self.judgements)

    @property
    def spread(self) -> float:
        """How far the judges' composites are apart; 0 for one judge."""
        composites = [judgement.composite for judgement in self.judgements]
        return max(composites) - min(composites)

    @property
    def disputed(self) -> bool:
        """Whether the judges disagree by more than the stated spread."""
        return self.spread > self.disagreement_over

    @property
    def seconds(self) -> float:
        """The time of all judgements together."""
        return sum(judgement.seconds for judgement in self.judgements)

    def reasons(self, dimension: str) -> str:
        """What the judges said of a dimension, one paragraph a judge."""
        said = (judgement.scores[dimension].reasons for judgement in self.judgements)
        return "\n".join(filter(None, said))
