"""Models that cannot be run now: the error, and when the keeper tries again."""

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

    Until `until_s` (monotonic) its requests get the same error at once, unless its files differ from
    `stamp`. `far`: the files lie on another machine. `lasting`: the files or the configuration have to
    change, so that no request is told to try again.
    """

    error: KeepwarmError
    stamp: Stamp = ()
    pause_s: float = 0.0
    until_s: float = 0.0
    far: bool = False
    lasting: bool = False

    @classmethod
    def after(
        cls,
        before: BrokenModel | None,
        error: KeepwarmError,
        stamp: Stamp,
        now_s: float,
        *,
        far: bool = False,
        lasting: bool = False,
    ) -> BrokenModel:
        """The model after another failure: with the same files, each pause is twice the one before."""
        pause_s = FIRST_PAUSE_S
        if before is not None and before.stamp == stamp:
            pause_s = min(max(2 * before.pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        return cls(error, stamp, pause_s, now_s + pause_s, far, lasting)

    def holds(self, stamp: Stamp, now_s: float) -> bool:
        """Whether the error still holds, so that another try is too early."""
        return now_s < self.until_s and stamp == self.stamp

    def raised(self) -> KeepwarmError:
        """A copy of the error, to be raised. Each request gets its own, because it collects a traceback."""
        return error_from_wire(self.error.to_wire())

    def refusal(self, now_s: float) -> KeepwarmError:
        """As `raised`, for a request that comes before the files are read again."""
        return self.raised() if self.lasting else self.raised().in_pause(self.until_s - now_s)
