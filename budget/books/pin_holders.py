"""The holders of each pin: the configuration, clients, and requests that are to pin a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

Owner = str | None
"""The program that a client is a connection of; None where that is not known."""


@dataclass(slots=True)
class Holders:
    """What keeps one model pinned; it is pinned while anything here does.

    `configured`: the configuration says so, and no hint has ended that. `persistent`: a client
    pinned it to outlast the client itself. `clients`: pins that end with these clients. `requests`:
    the waiting requests that pin it from their arrival on.
    """

    configured: bool = False
    persistent: bool = False
    clients: dict[str, Owner] = field(default_factory=dict)
    requests: dict[str, tuple[str, Owner]] = field(default_factory=dict)

    def last_while(self, clients: Collection[str], programs: Collection[str] = ()) -> bool:
        """Whether this pin is meant to last, or is held as long as these clients or programs wait."""
        return self.configured or self.persistent or self.held_by(clients, programs)

    def held_by(self, clients: Collection[str], programs: Collection[str] = ()) -> bool:
        """Whether one of these clients, or a connection of these programs, holds this pin."""
        return any(
            client in clients or program in programs
            for client, program in (*self.clients.items(), *self.requests.values())
        )

    @property
    def waiting(self) -> set[str]:
        """The clients of its requests."""
        return {client for client, _ in self.requests.values()}

    @property
    def programs(self) -> dict[str, str]:
        """By client, the program of each client that holds it, where that is known."""
        held = (*self.clients.items(), *self.requests.values())
        return {client: program for client, program in held if program is not None}

    def __bool__(self) -> bool:
        return self.configured or self.persistent or bool(self.clients) or bool(self.requests)


class PinHolders:
    """The holders of every pinned model, by its name."""

    def __init__(self) -> None:
        self._by_model: dict[str, Holders] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._by_model

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._by_model))

    def get(self, model: str) -> Holders | None:
        """What keeps a model pinned; None when nothing does."""
        return self._by_model.get(model)

    def held_by(self, clients: Collection[str], programs: Collection[str] = ()) -> set[str]:
        """The models that these clients, or connections of these programs, hold pinned."""
        found = self._by_model.items()
        return {model for model, holders in found if holders.held_by(clients, programs)}

    def requests_of(self, model: str) -> set[str]:
        """The waiting requests that pin a model."""
        holders = self._by_model.get(model)
        return set(holders.requests) if holders is not None else set()

    def called(self) -> set[str]:
        """The models that callers keep pinned, whatever the configuration says."""
        return {
            model
            for model, holders in self._by_model.items()
            if holders.persistent or holders.clients or holders.requests
        }

    def configure(self, models: set[str]) -> None:
        """These models, and no others, are pinned by the configuration from now on."""
        for model in models:
            self._of(model).configured = True
        for model in self._by_model.keys() - models:
            self._by_model[model].configured = False
            self._settle(model)

    def ask(self, model: str, request_id: str, client_id: str, owner: Owner) -> None:
        """A request pins a model as long as it waits; `granted` or `ended` follows."""
        self._of(model).requests[request_id] = (client_id, owner)

    def granted(self, model: str, request_id: str, *, persist: bool) -> None:
        """A request has its pin: it lasts as long as the client, or until `unpin`.

        A pin that a hint has ended while the request waited for the load does not come back.
        """
        holders = self._by_model.get(model)
        asked = holders.requests.pop(request_id, None) if holders is not None else None
        if holders is None or asked is None:
            return
        if persist:
            holders.persistent = True
        else:
            client_id, owner = asked
            holders.clients[client_id] = owner

    def ended(self, model: str, request_id: str) -> bool:
        """A request ends without its pin; returns whether the model is pinned no more by that."""
        holders = self._by_model.get(model)
        if holders is None or holders.requests.pop(request_id, None) is None:
            return False
        return self._settle(model)

    def gone(self, client_id: str) -> list[str]:
        """A client is gone and its pins with it; returns the models that are pinned no more."""
        held = [model for model, holders in self._by_model.items() if client_id in holders.clients]
        for model in held:
            del self._by_model[model].clients[client_id]
        return [model for model in held if self._settle(model)]

    def unpin(self, model: str) -> None:
        """End every pin of a model, the configuration's until that is read anew."""
        self._by_model.pop(model, None)

    def _of(self, model: str) -> Holders:
        return self._by_model.setdefault(model, Holders())

    def _settle(self, model: str) -> bool:
        if self._by_model[model]:
            return False
        del self._by_model[model]
        return True
