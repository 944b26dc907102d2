"""What went wrong inside the core, a bug of keepwarm: made actions, counted, and survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from budget.actions import Fault

BORNE: Final = 8
"""So often in a row an optional part may fail before it is left out."""


class Faults:
    """The faults of one core.

    Parts that nothing depends on (the policy's judgement, looking ahead, asking leases to yield) are
    left out after some faults in a row, until the configuration is read anew: what fails every time
    would only fill the log.
    """

    def __init__(self) -> None:
        self.new: list[Fault] = []
        """Those of the event at hand, not told yet."""
        self.total = 0
        self.left_out: set[str] = set()
        """The optional parts that are not used any more."""
        self.in_row: Counter[str] = Counter()
        """How often each optional part has failed since it last did not."""

    def note(self, where: str, error: Exception, imbalances: Sequence[str] = ()) -> None:
        """Note a failure; `imbalances` is what did not balance afterwards and was put right."""
        self.total += 1
        self.new.append(Fault(where, error, tuple(imbalances)))

    def bear(self, part: str, error: Exception, imbalances: Sequence[str] = ()) -> None:
        """Note that an optional part failed; one that fails `BORNE` times in a row is left out."""
        self.note(part, error, imbalances)
        self.in_row[part] += 1
        if self.in_row[part] >= BORNE:
            self.left_out.add(part)

    def fine(self, part: str) -> None:
        """Note that an optional part did its work: its failures in a row are over."""
        self.in_row.pop(part, None)

    def forgive(self) -> None:
        """Let every part that was left out be tried again."""
        self.left_out.clear()
        self.in_row.clear()

    def take(self) -> list[Fault]:
        """The faults since the last call, each once."""
        new, self.new = self.new, []
        return new
