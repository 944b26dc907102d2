"""Agent patterns on top of the shim: checked roles, pipelines of stages, answers judged and improved.

`evaluation/` has rubrics, judges and what they read; `refine/` improves an answer until it passes.
"""

from harness.evaluation.compressor import Compressed, Compressor
from harness.evaluation.judge import Evaluation, EvaluatorPool, Judge, Judgement
from harness.evaluation.rubric import Dimension, Rubric, Score
from harness.pipeline import ItemResult, Pipeline, Stage, StageContext, StageReply
from harness.refine.batch import run_many
from harness.refine.record import RefineRecord, Round
from harness.refine.refine import Refine, WiggumLoop
from harness.roles import Roles
from shim.config.role_checks import EVALUATOR_FLOOR_BITS

__all__ = [
    "EVALUATOR_FLOOR_BITS",
    "Compressed",
    "Compressor",
    "Dimension",
    "Evaluation",
    "EvaluatorPool",
    "ItemResult",
    "Judge",
    "Judgement",
    "Pipeline",
    "Refine",
    "RefineRecord",
    "Roles",
    "Round",
    "Rubric",
    "Score",
    "Stage",
    "StageContext",
    "StageReply",
    "WiggumLoop",
    "run_many",
]
