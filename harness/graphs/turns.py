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
    """The work that waits and runs, by number. Numbers are in the order in which the work came.

    Waiting work is kept by its models, so that the next one is found among thousands as fast as among few.
    """

    def __init__(self) -> None:
        self._waiting: dict[Models, dict[int, None]] = {}
        self._models: dict[int, Models] = {}
        self._uses: Counter[str] = Counter()

    @property
    def in_use(self) -> Models:
        """The models of all work that runs."""
        return frozenset(self._uses)

    def wait(self, number: int, models: Sequence[str]) -> None:
        """Work has come."""
        self._models[number] = wanted = frozenset(models)
        self._waiting.setdefault(wanted, {})[number] = None

    def done(self, number: int) -> None:
        """Work has ended, or was withdrawn."""
        models = self._models.pop(number)
        if not self._leaves(number, models):
            self._uses.subtract(models)
            self._uses = +self._uses

    def next(self, fits: Fits) -> int | AskFit | None:
        """The number of work that starts now, a question that has to be answered first, or None."""
        in_use = self.in_use
        firsts = sorted((next(iter(numbers)), models) for models, numbers in self._waiting.items())
        for number, models in firsts:
            if models <= in_use:
                return self._start(number)
        if firsts and not in_use:
            return self._start(self._most_wanted())
        for number, models in firsts:
            known = fits(in_use | models)
            if known is None:
                return AskFit(in_use | models)
            if known:
                return self._start(number)
        return None

    def _most_wanted(self) -> int:
        """The first of the work with the models that most work wants: they are loaded for all at once."""
        return -max((len(numbers), -next(iter(numbers))) for numbers in self._waiting.values())[1]

    def _start(self, number: int) -> int:
        models = self._models[number]
        self._leaves(number, models)
        self._uses.update(models)
        return number

    def _leaves(self, number: int, models: Models) -> bool:
        """Whether the work waited; it does so no more."""
        waiting = self._waiting.get(models, {})
        if number not in waiting:
            return False
        del waiting[number]
        if not waiting:
            del self._waiting[models]
        return True
