"""What the demo's trained models are told: short, because they read these words only."""

from __future__ import annotations

from collections.abc import Sequence

from harness.evaluation.rubric import Rubric
from harness.refine.prompts import Message, weaknesses
from harness.refine.record import RefineRecord


def producer_prompt(record: RefineRecord) -> Sequence[Message]:
    """The task; after a round its text and what the judge found weak."""
    asked: list[Message] = [{"role": "user", "content": record.task}]
    if not record.rounds:
        return asked
    last = record.rounds[-1].produced.text
    return [*asked, {"role": "assistant", "content": last}, revise(weaknesses(record))]


def revise(weak: str) -> Message:
    """The message that asks for another text."""
    return {"role": "user", "content": f"Revise.\n{weak}"}


def judge_prompt(_rubric: Rubric, task: str, answer: str) -> Sequence[Message]:
    """The task and the report; the rubric is what the evaluator was trained on."""
    return [{"role": "user", "content": f"Judge.\n{task}\n\n{answer}"}]
