"""What is judged: dimensions with weights and anchors, and the shape of a judge's answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.given import a_list, a_number, a_text, an_object
from shim import EndpointError, InvalidRequest
from shim.config.problems import given_twice

HIGHEST: Final = 10.0
STEP: Final = 0.5
SCORES: Final[tuple[float, ...]] = tuple(STEP * n for n in range(int(HIGHEST / STEP) + 1))
"""The scores that a judge can give: 0 to 10 in half steps."""
HOLDS_NO_SCHEMA: Final = (
    "Its endpoint does not hold answers to a JSON schema; use an engine that does."
)
REASONS_LENGTH: Final = 400
"""Characters of the reasons for one score: a model that rambles ends there."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that is judged.

    Args:
        name: letters, digits and `_`; the key of its score.
        description: what is judged, in a sentence or two for the evaluator.
        weight: its share of the composite, 0 to 1; None for equal shares of all dimensions.
        anchors: what a score looks like, as `{0: "no fact is right", 10: "every fact is right"}`.

    Raises:
        InvalidRequest: an argument is of another type, or a weight or an anchor is out of its range.
    """

    name: str
    description: str
    weight: float | None = None
    anchors: Mapping[float, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        a_text("The name of a dimension", self.name)
        a_text(f"The description of {self.name}", self.description)
        if self.weight is not None:
            a_number(f"The weight of {self.name}", self.weight, 0, 1)
        for at, text in an_object(f"The anchors of {self.name}", self.anchors, Mapping).items():
            a_number(f"An anchor of {self.name}", at, 0, HIGHEST)
            a_text(f"The anchor of {self.name} at {at}", text)


@dataclass(frozen=True, slots=True)
class Score:
    """A dimension's score, 0 to 10, with the reasons that the judge gave before it."""

    score: float
    reasons: str = ""

    def __post_init__(self) -> None:
        a_number("A score", self.score, 0, HIGHEST)
        a_text("The reasons of a score", self.reasons)


class Rubric:
    """Dimensions that are judged together, and how their scores make one composite.

    Args:
        dimensions: at least one; their weights add up to 1, or none has a weight.

    Raises:
        InvalidRequest: no dimension, two with one name, or weights and anchors that cannot be.
    """

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self.dimensions = tuple(a_list("A rubric's dimensions", dimensions, Dimension))
        _check_names(self.dimensions)
        self.weights: Mapping[str, float] = _weights(self.dimensions)
        for dimension in self.dimensions:
            _check_anchors(dimension)

    def __repr__(self) -> str:
        return f"Rubric({', '.join(f'{name} {share:g}' for name, share in self.weights.items())})"

    @property
    def names(self) -> tuple[str, ...]:
        """The dimensions' names, in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def words(self) -> str:
        """Everything that the rubric says; what a compressed payload is chosen by."""
        return "\n".join(
            " ".join((d.name, d.description, *d.anchors.values())) for d in self.dimensions
        )

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a judge's answer. Reasons come before the score, so that they lead to it."""
        one = {
            "type": "object",
            "properties": {
                "reasons": {"type": "string", "maxLength": REASONS_LENGTH},
                "score": {"enum": [_number(score) for score in SCORES]},
            },
            "required": ["reasons", "score"],
            "additionalProperties": False,
        }
        return {
            "type": "object",
            "properties": dict.fromkeys(self.names, one),
            "required": list(self.names),
            "additionalProperties": False,
        }

    def described(self) -> str:
        """The rubric as the evaluator reads it."""
        return "\n".join(_described(dimension) for dimension in self.dimensions)

    def scores(self, answer: Any) -> dict[str, Score]:
        """The scores of a judge's parsed answer.

        Raises:
            EndpointError: a dimension is missing, or its score is none of 0, 0.5 ... 10. An engine that
                holds to the schema cannot answer so.
        """
        return {name: _score(name, answer) for name in self.names}

    def composite(self, scores: Mapping[str, Score]) -> float:
        """The weighted mean of all dimensions, 0 to 10.

        Raises:
            InvalidRequest: a dimension has no score.
        """
        for name in self.names:
            an_object(
                f"The score of {name}", an_object("The scores", scores, Mapping).get(name), Score
            )
        return math.fsum(self.weights[name] * scores[name].score for name in self.names)

    def to_json(self) -> dict[str, Any]:
        """As a record keeps it."""
        return {
            d.name: {
                "description": d.description,
                "weight": self.weights[d.name],
                "anchors": {_key(at): text for at, text in d.anchors.items()},
            }
            for d in self.dimensions
        }


def _check_names(dimensions: Sequence[Dimension]) -> None:
    names = [dimension.name for dimension in dimensions]
    bad = [name for name in names if not name.isidentifier()]
    if not names or bad or len(set(names)) != len(names):
        raise InvalidRequest(
            f"A rubric cannot have the dimensions {names}.",
            hint="Give at least one, each with its own name of letters, digits and `_`.",
            dimensions=names,
        )


def _weights(dimensions: Sequence[Dimension]) -> dict[str, float]:
    given = {d.name: d.weight for d in dimensions if d.weight is not None}
    if not given:
        return {d.name: 1 / len(dimensions) for d in dimensions}
    total = math.fsum(given.values())
    if len(given) < len(dimensions) or not math.isclose(total, 1.0, abs_tol=1e-6):
        raise InvalidRequest(
            f"The weights of a rubric are {given}, which add up to {total:g} for "
            f"{len(dimensions)} dimensions.",
            hint="Give every dimension a weight of 0 or more, 1 in all; or give none, for equal ones.",
            weights=given,
            total=total,
        )
    return given


def _check_anchors(dimension: Dimension) -> None:
    if strange := [at for at in dimension.anchors if at not in SCORES]:
        raise InvalidRequest(
            f"The dimension {dimension.name} has anchors at {strange}.",
            hint="Scores go from 0 to 10 in half steps.",
            anchors=strange,
        )


def _described(dimension: Dimension) -> str:
    anchors = "".join(f"\n  - {_key(at)}: {text}" for at, text in sorted(dimension.anchors.items()))
    return f"- {dimension.name}: {dimension.description}{anchors}"


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The keys of an object in a judge's answer. Of two scores for one dimension neither is the score.

    Raises:
        EndpointError: a key is there twice.
    """
    if twice := given_twice(pairs):
        gave = f"{', '.join(twice)} twice"
        raise EndpointError(f"A judge gave {gave}.", hint=HOLDS_NO_SCHEMA, gave=gave)
    return dict(pairs)


def _score(name: str, answer: Any) -> Score:
    found = answer.get(name) if isinstance(answer, dict) else None
    score = found.get("score") if isinstance(found, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in SCORES:
        gave = f"no score for {name}" if score is None else f"the score {score!r:.60} for {name}"
        raise EndpointError(
            f"A judge gave {gave}.", hint=HOLDS_NO_SCHEMA, gave=gave, dimension=name
        )
    return Score(float(score), str(found.get("reasons", "")) if isinstance(found, dict) else "")


def _number(score: float) -> int | float:
    """JSON's shortest form: a grammar spells enumerated numbers out."""
    return int(score) if score == int(score) else score


def _key(at: float) -> str:
    return f"{at:g}"
