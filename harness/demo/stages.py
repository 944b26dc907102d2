"""The demo's pipeline: hear -> classify -> retrieve -> produce -> evaluate -> answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from harness.demo.reports import RUBRIC, FactSheet, judge_prompt
from harness.demo.spoken_requests import KINDS, SHEETS, Request
from harness.memory.nearest import normalized
from harness.pipeline import Pipeline, Stage, StageContext
from shim import Shim

TOLD: Final = "Answer the question from the text in one short sentence."
_REPORT_TOKENS: Final = 96
_GRADE_TOKENS: Final = 200
_ANSWER_TOKENS: Final = 24


def demo_pipeline(shim: Shim) -> Pipeline:
    """The stages whose models the shim has. The inputs are requests."""
    stages: Sequence[Stage[Any]] = (
        Stage("hear", "ear", hear),
        Stage("classify", "classifier", classify),
        Stage("retrieve", "embedder", retrieve),
        Stage("produce", "producer", produce),
        Stage("evaluate", "evaluator", evaluate),
        Stage("answer", "answerer", answer),
    )
    return Pipeline([stage for stage in stages if stage.model in shim.config.models], shim)


def question(context: StageContext) -> str:
    """What was heard; without an ear the question as it is written."""
    return str(context.results.get("hear", context.input.question))


def hear(context: StageContext) -> str:
    """The words of the spoken question."""
    sound = context.input.sound.read_bytes()
    return context.keep(context.shim.transcribe(context.model, sound, language="en")).text


def classify(context: StageContext) -> str:
    """The kind of fact that is asked for: the one whose description is nearest."""
    return list(KINDS)[_nearest(context, list(KINDS.values()))]


def retrieve(context: StageContext) -> FactSheet:
    """The fact sheet that is nearest to the question."""
    return SHEETS[_nearest(context, [sheet.report() for sheet in SHEETS])]


def produce(context: StageContext) -> str:
    """A report from the facts."""
    return context.chat(sheet_of(context).task, max_tokens=_REPORT_TOKENS, temperature=0.0).content


def evaluate(context: StageContext) -> float:
    """The composite of the evaluator's scores, 0 to 10."""
    messages = judge_prompt(RUBRIC, sheet_of(context).task, context.results["produce"])
    schema = RUBRIC.schema()
    reply = context.chat(messages, max_tokens=_GRADE_TOKENS, temperature=0.0, json_schema=schema)
    return RUBRIC.composite(RUBRIC.scores(json.loads(reply.content)))


def answer(context: StageContext) -> str:
    """One sentence, from the fact of the sheet that is asked for."""
    part = about(sheet_of(context), context.results.get("classify", ""))
    messages = [
        {"role": "system", "content": TOLD},
        {"role": "user", "content": f"{part}\n\nQuestion: {question(context)}"},
    ]
    reply = context.chat(messages, max_tokens=_ANSWER_TOKENS, temperature=0.0)
    return " ".join(reply.content.split())


def sheet_of(context: StageContext) -> FactSheet:
    """The fact sheet that was found; without an embedder the request's own."""
    request: Request = context.input
    found: FactSheet = context.results.get("retrieve", request.sheet)
    return found


def about(sheet: FactSheet, kind: str) -> str:
    """What a sheet says of one kind of fact; all that it says where it has none of that kind."""
    return sheet.report([fact for fact in sheet.facts if fact.key == kind] or None)


def _nearest(context: StageContext, texts: Sequence[str]) -> int:
    vectors = normalized(context.embed([question(context), *texts]).vectors)
    return int((vectors[1:] @ vectors[0]).argmax())
