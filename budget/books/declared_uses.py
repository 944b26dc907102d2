"""What clients declared of their coming uses, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest

SKIPPED_STEPS = 8
"""A request that matches none of so many next steps of its plan is taken as an aside."""

FADING = 0.2
"""The weight of the newest request in the share of those that were planned."""


class DeclaredUses:
    """The declared next uses of every plan, as engine ids, soonest first.

    A plan has a name of its own and an owner, the client that declared it: requests that use it up
    may come from other clients, since a program talks to its keeper over several connections.
    """

    __slots__ = ("_models", "_owners", "by_name", "unplanned", "version")

    def __init__(self) -> None:
        self.by_name: dict[str, deque[str]] = {}
        """What is left of each; to be read, the same object for good."""
        self._models: dict[str, deque[str]] = {}
        """The names under which the steps of each plan were declared, as many as there are steps."""
        self._owners: dict[str, str] = {}
        self.version = 0
        """Changes with every change of a plan."""
        self.unplanned = 1.0
        """The share of recent requests that no plan foretold, between 0 and 1."""

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def declare(
        self, name: str, steps: Iterable[tuple[str, str]], owner: str | None = None
    ) -> None:
        """Replace a plan; an empty one withdraws it. A plan without an owner is its own.

        `steps`: the model that each step is declared as, and the engine that runs it.
        """
        models, order = deque[str](), deque[str]()
        for model, engine_id in steps:
            models.append(model)
            order.append(engine_id)
        self.version += 1
        if order:
            self._models[name], self._owners[name] = models, owner or name
            self.by_name[name] = order
        else:
            self.drop(name)

    def withdraw(self, owner: str) -> None:
        """A client is gone and its plans with it."""
        for name in [name for name, of in self._owners.items() if of == owner]:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Forget a plan, if there is one of that name."""
        self.version += 1
        self.by_name.pop(name, None)
        self._models.pop(name, None)
        self._owners.pop(name, None)

    def follow(self, engine_of: Mapping[str, str]) -> None:
        """The configuration was read anew: steps go on with the engine that runs their model now.

        Steps of a model that is gone are left out.
        """
        for name in list(self.by_name):
            models = deque(m for m in self._models.get(name, ()) if m in engine_of)
            if models:
                self._models[name] = models
                self.by_name[name] = deque(engine_of[model] for model in models)
            else:
                self.drop(name)
        self.version += 1

    def used(self, name: str, engine_id: str) -> None:
        """A request under a plan asked for an engine: the plan goes on behind that step.

        Steps that were left out are dropped with it, up to a few; a use that is not planned for
        changes nothing.
        """
        self.unplanned += FADING * (1.0 - self.unplanned)
        order = self.by_name.get(name)
        if order is None:
            return
        for position, planned in enumerate(islice(order, SKIPPED_STEPS)):
            if planned == engine_id:
                models = self._models[name]
                for _ in range(position + 1):
                    order.popleft()
                    models.popleft()
                self.version += 1
                self.unplanned -= FADING
                break
        if not order:
            self.drop(name)

    def order(self, limit: int) -> list[str]:
        """The next `limit` uses of all plans, taken in turns: nobody says who is faster."""
        return list(islice(self._merged(), limit))

    def next_uses(self, limit: int) -> dict[str, int]:
        """Each engine's place (0 is next) among the next `limit` uses, nearest first."""
        found: dict[str, int] = {}
        for place, engine_id in enumerate(islice(self._merged(), limit)):
            found.setdefault(engine_id, place)
        return found

    def declared(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """Every plan: its name, its owner, and all uses that are left of it."""
        return ((name, self._owners[name], order) for name, order in self.by_name.items())

    def by_plan(self, limit: int) -> dict[str, list[str]]:
        """The next `limit` uses of each plan, by its name."""
        return {name: list(islice(order, limit)) for name, order in self.by_name.items()}

    def _merged(self) -> Iterator[str]:
        orders = list(self.by_name.values())
        if len(orders) == 1:
            return iter(orders[0])
        turns = chain.from_iterable(zip_longest(*orders))
        return (engine_id for engine_id in turns if engine_id is not None)
