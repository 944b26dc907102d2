"""Whether models may judge a producer: at least Q8_0, and not the producer's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.roles import check_different, check_overrides
from shim import RoleViolation, Shim
from shim.config.role_checks import check_precision


class Fitness(NamedTuple):
    """The overrides that were needed, and the judges whose precision cannot be read; both in order."""

    overridden: tuple[str, ...]
    unread: tuple[str, ...]


def check_pair(
    shim: Shim, producer: str, judges: Sequence[str], overrides: Sequence[str]
) -> Fitness:
    """What there is to say of the judges, once they are known to be fit or overridden.

    Raises:
        RoleViolation: a judge is coarser than Q8_0 or has the producer's weights, and is no override.
        InvalidRequest: an override is no judge.
        UnknownModel: a model is not configured.
    """
    check_overrides(overrides, judges)
    writes, needed, unread = shim.describe(producer), list[str](), list[str]()
    for name in judges:
        info = shim.describe(name)
        if info.min_bits_per_weight is None:
            unread.append(name)
        try:
            check_precision(name, "evaluator", info)
            check_different(info, writes)
        except RoleViolation:
            if name not in overrides:
                raise
            needed.append(name)
    return Fitness(tuple(needed), tuple(unread))
