"""The demo's requests: questions about people, of whom there are fact sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.demo.reports.facts import FactSheet, sheets

SPOKEN: Final = Path(__file__).resolve().parent / "spoken"
"""The questions as sound, one file for each kind; a voice of Piper spoke them."""

KINDS: Final[Mapping[str, str]] = {
    "city": "where somebody lives, a town",
    "job": "what somebody does for a living, a profession",
    "born": "when somebody was born, a year",
    "pet": "which animal somebody keeps, a pet",
    "sport": "which sport somebody plays",
    "dish": "what somebody cooks, a meal",
    "language": "which language somebody speaks",
}
"""What can be asked of a person, as the classifier reads it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question, the sound of it, and what it is about. The models see the question only."""

    question: str
    kind: str
    sheet: FactSheet

    @property
    def sound(self) -> Path:
        """A WAV file."""
        return SPOKEN / f"{self.kind}.wav"

    @property
    def fact(self) -> str:
        """The word that a right answer has."""
        return next(fact.value for fact in self.sheet.facts if fact.key == self.kind)


def _asked(name: str, kind: str, question: str) -> Request:
    """A request about a person whose sheet has the fact."""
    found = (
        one
        for one in sheets(seed=8)
        if one.name == name and any(fact.key == kind for fact in one.facts)
    )
    return Request(question, kind, next(found))


REQUESTS: Final = (
    _asked("Paul", "pet", "What pet does Paul keep?"),
    _asked("Boris", "job", "What does Boris do for a living?"),
    _asked("Hugo", "sport", "Which sport does Hugo play?"),
    _asked("Rosa", "language", "Which language does Rosa speak?"),
    _asked("Felix", "city", "Which city does Felix live in?"),
    _asked("Jonas", "dish", "Which dish does Jonas cook?"),
)
SHEETS: Final = tuple(request.sheet for request in REQUESTS)
