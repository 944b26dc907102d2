"""A task whose quality can be counted: from a list of facts write a short report.

`facts.py` makes fact sheets and reads reports, `truth.py` scores a report exactly, and `report_prompts.py`
says what the demo's producer and evaluator are told. Both were trained on it
(`tools/train_demo_models.py`).
"""

from harness.demo.reports.facts import FactSheet, Statement, sheets, statements
from harness.demo.reports.report_prompts import judge_prompt, producer_prompt
from harness.demo.reports.truth import RUBRIC, TrueScores, true_composite, true_scores

__all__ = [
    "RUBRIC",
    "FactSheet",
    "Statement",
    "TrueScores",
    "judge_prompt",
    "producer_prompt",
    "sheets",
    "statements",
    "true_composite",
    "true_scores",
]
