"""What clients declared of their coming uses, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest

SKIPPED_STEPS = 8
"""A request that matches none of so many next steps of its declared uses leaves them as they are."""

FADING = 0.2
"""The weight of the newest request in the share of requests that were declared."""


class DeclaredUses:
    """The declared uses of all clients, as engine ids, soonest first, by name.

    Each row of declared uses has a name of its own and an owner, the client that declared it.
    Requests that use it up may come from other clients, because a program talks to its keeper over
    several connections.
    """

    __slots__ = ("_any_order", "_models", "_owners", "by_name", "undeclared", "version")

    def __init__(self) -> None:
        self.by_name: dict[str, deque[str]] = {}
        """The uses that are left, by name; to be read, the same object for good."""
        self._models: dict[str, deque[str]] = {}
        """By name: the models that the steps were declared as, as many as there are steps."""
        self._owners: dict[str, str] = {}
        self._any_order: set[str] = set()
        """The names whose uses may come in another order."""
        self.version = 0
        """Changes with every change of declared uses."""
        self.undeclared = 1.0
        """The share of recent requests that were not declared, between 0 and 1."""

    def __bool__(self) -> bool:
        return bool(self.by_name)

    def declare(
        self,
        name: str,
        steps: Iterable[tuple[str, str]],
        owner: str | None = None,
        *,
        any_order: bool = False,
    ) -> None:
        """Replace the declared uses of that name; no steps withdraw them. The default owner is the name.

        `steps`: the model that each step is declared as, and the engine that runs it.
        `any_order`: steps work side by side, so that one which is passed over comes later.
        """
        (self._any_order.add if any_order else self._any_order.discard)(name)
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
        """Drop the declared uses of a client that is gone."""
        for name in [name for name, of in self._owners.items() if of == owner]:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop the declared uses of that name, if there are any."""
        self.version += 1
        self.by_name.pop(name, None)
        self._models.pop(name, None)
        self._owners.pop(name, None)
        self._any_order.discard(name)

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
        """Drop the step that a request under that name has used.

        Steps that were left out before it are dropped, too, up to a few, unless they may come in any order.
        A use that was not declared changes nothing.
        """
        self.undeclared += FADING * (1.0 - self.undeclared)
        order = self.by_name.get(name)
        if order is None:
            return
        any_order = name in self._any_order
        for position, declared in enumerate(islice(order, None if any_order else SKIPPED_STEPS)):
            if declared == engine_id:
                first = position if any_order else 0
                for row in (order, self._models[name]):
                    for _ in range(first, position + 1):
                        del row[first]
                self.version += 1
                self.undeclared -= FADING
                break
        if not order:
            self.drop(name)

    def order(self, limit: int) -> list[str]:
        """The next `limit` uses of all names, taken in turns, because which is faster is not known."""
        return list(islice(self._merged(), limit))

    def next_uses(self, limit: int) -> dict[str, int]:
        """Each engine's place (0 is next) among the next `limit` uses, nearest first."""
        found: dict[str, int] = {}
        for place, engine_id in enumerate(islice(self._merged(), limit)):
            found.setdefault(engine_id, place)
        return found

    def declared(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """By row of declared uses: its name, its owner, and all uses that are left."""
        return ((name, self._owners[name], order) for name, order in self.by_name.items())

    def next_by_name(self, limit: int) -> dict[str, list[str]]:
        """The next `limit` uses, by name."""
        return {name: list(islice(order, limit)) for name, order in self.by_name.items()}

    def _merged(self) -> Iterator[str]:
        orders = list(self.by_name.values())
        if len(orders) == 1:
            return iter(orders[0])
        turns = chain.from_iterable(zip_longest(*orders))
        return (engine_id for engine_id in turns if engine_id is not None)
