"""Which waiting work starts next, so that models do not evict one another in turns. Pure.

Work whose models are in use already starts at once. Other work starts when its models fit beside those in
use; until then it waits for these to be done. So branches over more models than the budget holds load each
model once, not once a branch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Models = frozenset[str]
Fits = Callable[[Models], bool | None]
"""Whether models fit together; None where it was not asked yet."""


@dataclass(frozen=True, slots=True)
class AskFit:
    """Nothing can be decided before it is known whether these models fit together."""

    models: Models


class ModelTurns:
    """The work that waits and runs, by number. Numbers are in the order in which the work came."""

    def __init__(self) -> None:
        self._waiting: dict[int, Models] = {}
        self._running: dict[int, Models] = {}

    @property
    def in_use(self) -> Models:
        """The models of all work that runs."""
        return frozenset().union(*self._running.values())

    def wait(self, number: int, models: Sequence[str]) -> None:
        """Work has come."""
        self._waiting[number] = frozenset(models)

    def done(self, number: int) -> None:
        """Work has ended, or was withdrawn."""
        self._running.pop(number, None)
        self._waiting.pop(number, None)

    def next(self, fits: Fits) -> int | AskFit | None:
        """The number of work that starts now, a question that has to be answered first, or None."""
        in_use = self.in_use
        for number, models in self._waiting.items():
            if models <= in_use or not in_use:
                return self._start(number if in_use else self._first())
        for number, models in self._waiting.items():
            known = fits(in_use | models)
            if known is None:
                return AskFit(in_use | models)
            if known:
                return self._start(number)
        return None

    def _first(self) -> int:
        """Of all waiting work one whose models most of it wants: they are loaded for all at once."""
        wanted = Counter(self._waiting.values())
        return max(self._waiting, key=lambda number: (wanted[self._waiting[number]], -number))

    def _start(self, number: int) -> int:
        self._running[number] = self._waiting.pop(number)
        return number
