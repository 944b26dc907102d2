"""The demo's task: reports are scored exactly, and lessons say of themselves what is true."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from harness import RefineRecord
from harness.demo.reports import (
    RUBRIC,
    FactSheet,
    Statement,
    judge_prompt,
    producer_prompt,
    sheets,
    statements,
    true_composite,
    true_scores,
)
from harness.evaluation.judgement import Evaluation, Judgement
from harness.evaluation.rubric import SCORES
from harness.refine.prompts import weaknesses
from harness.refine.record import Produced, Settings
from tools.training.lessons import DRAFT, judgement, lessons, noisy, weak

SHEET = FactSheet(
    "Orla", (Statement("city", "Cork"), Statement("job", "baker"), Statement("pet", "cat"))
)


def test_a_report_of_all_facts_is_perfect() -> None:
    """Whatever the sheet; and what is read from it is what the sheet says."""
    for sheet in islice(sheets(1), 200):
        assert statements(sheet.report(), sheet.name) == list(sheet.facts)
        assert true_composite(sheet, sheet.report()) == pytest.approx(10)


@pytest.mark.parametrize(
    ("report", "scores"),
    [
        ("Orla lives in Cork. Orla works as a baker.", (6.5, 10, 10)),
        ("Orla lives in Riga. Orla works as a baker. Orla keeps a cat.", (10, 6.5, 10)),
        ("Orla lives in Cork. Orla lives in Cork. Orla keeps a cat.", (6.5, 10, 6.5)),
        ("Uwe lives in Cork.", (0, 0, 10)),
        ("Orla sings.", (0, 0, 10)),
        (" \n", (0, 0, 0)),
    ],
)
def test_what_is_missing_wrong_and_said_twice_costs_its_share(
    report: str, scores: tuple[float, ...]
) -> None:
    """Each kind of mistake costs in its own dimension; another person's facts are none."""
    assert tuple(true_scores(SHEET, report).values()) == scores


def test_scores_are_ones_that_the_rubric_has() -> None:
    """Also for reports with many mistakes."""
    draw = random.Random(1)
    for sheet in islice(sheets(2), 300):
        assert set(true_scores(sheet, sheet.report(noisy(draw, sheet, DRAFT))).values()) <= set(
            SCORES
        )


def test_the_same_seed_gives_the_same_sheets_and_lessons() -> None:
    """A training can be repeated."""
    assert list(islice(sheets(5), 9)) == list(islice(sheets(5), 9))
    assert list(lessons(5, 30)) == list(lessons(5, 30)) != list(lessons(6, 30))


def test_a_lesson_in_judging_has_the_rubrics_shape_and_the_true_scores() -> None:
    """The keys are in the schema's order, because the grammar asks for them so."""
    for lesson in lessons(3, 200):
        if lesson.kind == "judge":
            found = json.loads(lesson.answer)
            assert tuple(found) == RUBRIC.names
            assert all(list(one) == ["reasons", "score"] for one in found.values())
            RUBRIC.scores(found)
    found = json.loads(judgement(SHEET, "Orla lives in Riga. Orla keeps a cat."))
    assert found["complete"] == {"reasons": "city yes, job no, pet yes", "score": 6.5}
    assert found["correct"] == {
        "reasons": "city Riga for Cork wrong, pet cat for cat right",
        "score": 5,
    }


def test_the_producer_is_told_what_it_was_trained_on() -> None:
    """The lessons' words for a weakness are those of the loop."""
    report = "Orla lives in Riga. Orla keeps a cat."
    said = judgement(SHEET, report)
    scores = RUBRIC.scores(json.loads(said))
    found = Evaluation((Judgement("judge", scores, RUBRIC.composite(scores)),))
    settings = Settings("writer", ("judge",), 9.0, 3, 9.0, RUBRIC.to_json())
    first = RefineRecord(SHEET.task, settings)
    record = first.with_text(Produced(report)).with_scores(found)
    assert weaknesses(record) == weak(said, 9.0)
    assert producer_prompt(first) == [{"role": "user", "content": SHEET.task}]
    assert producer_prompt(record)[1:] == [
        {"role": "assistant", "content": report},
        {"role": "user", "content": f"Revise.\n{weak(said, 9.0)}"},
    ]
    assert judge_prompt(RUBRIC, SHEET.task, report)[0]["content"].endswith(report)
