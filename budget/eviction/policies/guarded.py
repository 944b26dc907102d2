"""A policy that may fail: its decision is then made by recency, and the failure is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from budget.books.declared_uses import DeclaredUses
from budget.books.engines import EngineRecord
from budget.books.residents import Residents
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.lru import Lru
from budget.eviction.victims import Need
from budget.recovery.faults import Faults

JUDGING: Final = "the policy's judgement"
LEARNING: Final = "the policy's learning"
"""The names of two parts that the core can do without, as its faults call them."""


class Guarded:
    """Wraps any policy: an exception or an impossible loss in it is replaced by recency, and reported.

    A policy that keeps failing is left alone, and recency decides until the configuration is read anew.
    """

    def __init__(self, policy: EvictionPolicy, faults: Faults) -> None:
        self.trusted = policy
        """The policy itself, to be read."""
        self._faults = faults
        self._spare = Lru()
        self._active: EvictionPolicy = policy

    @property
    def name(self) -> str:
        """The name of the policy that decides now."""
        return self._active.name

    @property
    def ordered(self) -> bool:
        """Whether the policy that decides now takes victims in order of loss; recency does."""
        try:
            return bool(self._active.ordered)
        except Exception as error:
            self._bear(JUDGING, error)
            return self._spare.ordered

    @property
    def followed(self) -> str:
        """What the policy that decides now follows, in words; empty when it fails."""
        try:
            return str(self._active.followed)
        except Exception as error:
            self._bear(JUDGING, error)
            return ""

    def attach(self, residents: Residents, declared_uses: DeclaredUses) -> None:
        """Not guarded: a policy that cannot begin is an error of the start."""
        self.trusted.attach(residents, declared_uses)

    def used(self, engine_id: str, now: float) -> None:
        """A request arrived."""
        try:
            self._active.used(engine_id, now)
        except Exception as error:
            self._bear(LEARNING, error)

    def booked(self, engine: EngineRecord, now: float) -> None:
        """A load starts."""
        try:
            self._active.booked(engine, now)
        except Exception as error:
            self._bear(LEARNING, error)

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """The configuration was read anew: the policy is trusted again."""
        self._active = self.trusted
        try:
            self._active.reconfigured(successors)
        except Exception as error:
            self._bear(LEARNING, error)

    def losses(self, engines: Sequence[EngineRecord], now: float) -> Sequence[float]:
        """The policy's, if they are such as losses can be."""
        try:
            found = self._active.losses(engines, now)
            if len(found) != len(engines) or not _possible(found):
                raise ValueError(f"{self.name} finds losses {found} for {len(engines)} engines")
        except Exception as error:
            self._bear(JUDGING, error)
            return self._spare.losses(engines, now)
        if self._faults.in_row:
            self._faults.fine(JUDGING)
        return found

    def victims(self, need: Need) -> Sequence[str] | None:
        """The policy's; None, as by loss, when it fails."""
        try:
            return self._active.victims(need)
        except Exception as error:
            self._bear(JUDGING, error)
            return None

    def export_state(self) -> dict[str, Any]:
        """What the policy learned."""
        return self.trusted.export_state()

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Take over what the policy had learned."""
        self.trusted.import_state(state)

    def _bear(self, part: str, error: Exception) -> None:
        self._faults.bear(part, error)
        if part in self._faults.left_out:
            self._active = self._spare


def _possible(losses: Sequence[float]) -> bool:
    """Whether all are numbers from 0 up; NaN and infinity make the sum what it cannot be."""
    return not losses or (min(losses) >= 0.0 and 0.0 <= sum(losses) < math.inf)
