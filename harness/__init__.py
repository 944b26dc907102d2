"""Agent patterns on top of the shim: checked roles, pipelines and graphs, answers judged and improved.

`graphs/` runs steps that wait for one another, `evaluation/` has rubrics, judges and what they read, and
`refine/` improves an answer until it passes.
"""

from harness.evaluation.compressor import Compressed, Compressor
from harness.evaluation.judge import EvaluatorPool, Judge
from harness.evaluation.judgement import Evaluation, Judgement
from harness.evaluation.rubric import Dimension, Rubric, Score
from harness.graphs.graph import Graph
from harness.graphs.outcome import GraphResult, Outcome, StepFailed
from harness.graphs.step import Retry, Step, StepContext
from harness.memory.passages import CaughtUp, Found, Hit, Passage
from harness.memory.store import MemoryStore
from harness.pipeline import ItemResult, Pipeline, Stage, StageContext, StageReply
from harness.refine.batch import run_many
from harness.refine.record import RefineRecord, Round
from harness.refine.refine import Refine, WiggumLoop
from harness.roles import Roles
from shim.config.role_checks import EVALUATOR_FLOOR_BITS

__all__ = [
    "EVALUATOR_FLOOR_BITS",
    "CaughtUp",
    "Compressed",
    "Compressor",
    "Dimension",
    "Evaluation",
    "EvaluatorPool",
    "Found",
    "Graph",
    "GraphResult",
    "Hit",
    "ItemResult",
    "Judge",
    "Judgement",
    "MemoryStore",
    "Outcome",
    "Passage",
    "Pipeline",
    "Refine",
    "RefineRecord",
    "Retry",
    "Roles",
    "Round",
    "Rubric",
    "Score",
    "Stage",
    "StageContext",
    "StageReply",
    "Step",
    "StepContext",
    "StepFailed",
    "WiggumLoop",
    "run_many",
]
