"""Whether models may judge a producer: at least Q8_0, and not the producer's own weights."""

from __future__ import annotations

from collections.abc import Sequence

from harness.roles import check_different, check_overrides
from shim import RoleViolation, Shim
from shim.config.role_checks import check_precision


def check_pair(
    shim: Shim, producer: str, judges: Sequence[str], overrides: Sequence[str]
) -> tuple[str, ...]:
    """The overrides that were needed, in the judges' order.

    Raises:
        RoleViolation: a judge is coarser than Q8_0 or has the producer's weights, and is no override.
        InvalidRequest: an override is no judge.
        UnknownModel: a model is not configured.
    """
    check_overrides(overrides, judges)
    writes, needed = shim.describe(producer), list[str]()
    for name in judges:
        info = shim.describe(name)
        try:
            check_precision(name, "evaluator", info)
            check_different(info, writes)
        except RoleViolation:
            if name not in overrides:
                raise
            needed.append(name)
    return tuple(needed)
