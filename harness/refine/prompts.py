"""What the producer is told: the task, and in later rounds its last text with what the judges missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.evaluation.plain_text import plain
from harness.refine.record import RefineRecord

Message = Mapping[str, Any]
Prompt = Callable[[RefineRecord], Sequence[Message]]
"""Makes the producer's messages of the record so far; a record without rounds asks for the first text."""


def prompt(record: RefineRecord) -> list[Message]:
    """The messages of the producer, unless a `Refine` is given others."""
    messages: list[Message] = [{"role": "user", "content": record.task}]
    if not record.rounds:
        return messages
    return [
        *messages,
        {"role": "assistant", "content": record.rounds[-1].produced.text},
        {
            "role": "user",
            "content": f"Improve your answer where it was judged weak:\n\n{weaknesses(record)}\n\n"
            "Keep what is good. Answer with the whole improved text and nothing else.",
        },
    ]


def weaknesses(record: RefineRecord) -> str:
    """The dimensions of the last round under the floor, the weakest first, with the judges' reasons.

    Where all are above it the weakest one is named, because the composite did not pass.
    """
    evaluation = record.rounds[-1].evaluation
    if evaluation is None:
        return ""
    ranked = sorted(evaluation.scores.items(), key=lambda item: item[1])
    weak = [item for item in ranked if item[1] < record.settings.floor] or ranked[:1]
    return "\n".join(
        f"- {name} ({score:g} of 10): {plain(evaluation.reasons(name)) or 'no reasons given'}"
        for name, score in weak
    )
