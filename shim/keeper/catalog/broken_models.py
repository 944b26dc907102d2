"""Models that cannot be run now: why, and when that is looked into again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from budget.errors import KeepwarmError, error_from_wire
from shim.placement.plan_entry import Stamp

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A model that could not be prepared.

    Until `until_s` (monotonic) its requests hear the same error at once, unless its files are no longer
    what `stamp` says that they were. `far`: they lie on another machine.
    """

    error: KeepwarmError
    stamp: Stamp = ()
    pause_s: float = 0.0
    until_s: float = 0.0
    far: bool = False

    @classmethod
    def after(
        cls,
        before: BrokenModel | None,
        error: KeepwarmError,
        stamp: Stamp,
        now_s: float,
        *,
        far: bool = False,
    ) -> BrokenModel:
        """The next one of a model: each pause with the same files is twice the one before it."""
        pause_s = FIRST_PAUSE_S
        if before is not None and before.stamp == stamp:
            pause_s = min(max(2 * before.pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        return cls(error, stamp, pause_s, now_s + pause_s, far)

    def holds(self, stamp: Stamp, now_s: float) -> bool:
        """Whether trying again now would be a waste."""
        return now_s < self.until_s and stamp == self.stamp

    def raised(self) -> KeepwarmError:
        """The error, to be raised: one of its own for each request, for it collects a traceback."""
        return error_from_wire(self.error.to_wire())
