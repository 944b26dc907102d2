"""What clients declared of their coming uses, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest

SKIPPED_STEPS = 8
"""A request that matches none of so many next steps of its client's plan is taken as an aside."""


class Plans:
    """The declared next uses of every client, as engine ids, soonest first."""

    __slots__ = ("_by_client",)

    def __init__(self) -> None:
        self._by_client: dict[str, deque[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_client)

    def declare(self, client_id: str, engine_ids: Iterable[str]) -> None:
        """Replace a client's plan; an empty one withdraws it."""
        order = deque(engine_ids)
        if order:
            self._by_client[client_id] = order
        else:
            self._by_client.pop(client_id, None)

    def withdraw(self, client_id: str) -> None:
        """A client is gone and its plan with it."""
        self._by_client.pop(client_id, None)

    def used(self, client_id: str, engine_id: str) -> None:
        """A client asked for an engine: its plan goes on behind that step.

        Steps that were left out are dropped with it, up to a few; a use that is not planned for
        changes nothing.
        """
        order = self._by_client.get(client_id)
        if order is None:
            return
        for position, planned in enumerate(islice(order, SKIPPED_STEPS)):
            if planned == engine_id:
                for _ in range(position + 1):
                    order.popleft()
                break
        if not order:
            del self._by_client[client_id]

    def order(self, limit: int) -> list[str]:
        """The next `limit` uses of all clients, taken in turns: nobody says who is faster."""
        return list(islice(self._merged(), limit))

    def _merged(self) -> Iterator[str]:
        orders = list(self._by_client.values())
        if len(orders) == 1:
            return iter(orders[0])
        turns = chain.from_iterable(zip_longest(*orders))
        return (engine_id for engine_id in turns if engine_id is not None)
