"""Agent patterns on top of the shim: roles that are checked, and pipelines of stages on a trace."""

from harness.pipeline import ItemResult, Pipeline, Stage, StageContext, StageReply
from harness.roles import Roles
from shim.config.role_checks import EVALUATOR_FLOOR_BITS

__all__ = [
    "EVALUATOR_FLOOR_BITS",
    "ItemResult",
    "Pipeline",
    "Roles",
    "Stage",
    "StageContext",
    "StageReply",
]
