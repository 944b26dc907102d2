"""The errors with which the core ends a request: what happened, the numbers, what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from budget.books.byte_text import size
from budget.errors import (
    AdmissionDenied,
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    KeepwarmError,
    NeverFits,
    QueueFull,
    UnknownModel,
)

Shortfall = tuple[str, int, int, int]
"""Device, its limit, the bytes that pins hold there and the bytes requested."""

Pins = Sequence[Mapping[str, Any]]
"""What keeps each model pinned: the rows of `budget.admission.pins.pins_of`."""


def unknown_model(model: str, known: Collection[str]) -> UnknownModel:
    """The error for a name that no model has."""
    return UnknownModel(
        f"No model is called {model!r}.",
        hint=f"Configured: {', '.join(sorted(known)) or 'none'}.",
        model=model,
    )


def withdrawn(model: str) -> Cancelled:
    """The error of a request that its caller withdrew, or whose caller is gone."""
    return Cancelled(f"The request for {model} was withdrawn.", model=model)


def foreign_lease(request_id: str, client_id: str) -> InvalidRequest:
    """The error of a lease that was given back twice, or by another client."""
    return InvalidRequest(
        f"Client {client_id} does not hold lease {request_id}.",
        hint="A lease ends once, by the client it was granted to.",
    )


def queue_full(whose: str, waiting: int, limit: int) -> QueueFull:
    """The error of a full queue. `whose` is empty for the queue of all models."""
    key = f"max_queue_per_model or [models.{whose}] max_queue" if whose else "max_queue"
    return QueueFull(
        f"{waiting} requests wait{f' for {whose}' if whose else ''}, and the limit is {limit}.",
        hint=f"Try again later, or raise [budget] {key}.",
        waiting=waiting,
        limit=limit,
    )


def too_late(model: str, waited_s: float, pins: Pins = ()) -> DeadlineExceeded:
    """The error of a request whose deadline passed; it names the pins of other clients it waited for."""
    if pins:
        return DeadlineExceeded(
            f"The deadline of the request for {model} passed after {waited_s:.3f} s of waiting for "
            f"{_named(pins)}.",
            hint="Give it more time, or end the pin: `keepwarm unpin MODEL`.",
            model=model,
            waited_s=waited_s,
            pins=[dict(pin) for pin in pins],
        )
    return DeadlineExceeded(
        f"The deadline of the request for {model} passed after {waited_s:.3f} s of waiting.",
        hint="Give it more time, a higher priority, or pin the model.",
        model=model,
        waited_s=waited_s,
    )


_LEARNED = " The figure was learned from an engine that took so much."


def never_fits(
    model: str, shortfall: Shortfall, pins: Pins = (), *, learned: bool = False
) -> NeverFits:
    """The error of a request that never fits beside pins; `pins` are those that hold bytes there.

    `learned`: its bytes are those that an engine was found to take.
    """
    device, limit, pinned, asked = shortfall
    which = f" ({_named(pins)})" if pins else ""
    return NeverFits(
        f"{model} asks for {size(asked)} on {device}, where the limit is {size(limit)} and "
        f"pinned models hold {size(pinned)}{which}: {size(asked + pinned - limit)} too much."
        + (_LEARNED if learned else ""),
        hint="Raise the limit, unpin a model, or choose a smaller context, KV type or file."
        + (f" `keepwarm forget {model}` goes back to the estimate." if learned else ""),
        model=model,
        learned=learned,
        **_numbers(shortfall),
        pins=[dict(pin) for pin in pins],
    )


def _numbers(shortfall: Shortfall) -> dict[str, Any]:
    return dict(
        zip(("device", "limit_bytes", "reserved_bytes", "requested_bytes"), shortfall, strict=True)
    )


def _named(pins: Pins) -> str:
    """The pins with their holders, in words: "the pin of a (client c3 of process 7), ..."."""
    named = []
    for pin in pins:
        holders = (*pin["clients"], *pin["waiting"])
        clients = [_client(client, pin["programs"].get(client)) for client in holders]
        lasting = [word for word in ("configured", "persistent") if pin[word]]
        named.append(f"the pin of {pin['model']} ({', '.join(lasting + clients)})")
    return ", ".join(named)


def _client(client: str, program: str | None) -> str:
    return f"client {client} of {program}" if program else f"client {client}"


def pins_do_not_fit(models: Collection[str], shortfall: Shortfall) -> ConfigError:
    """The error of configured pins that ask for more than a device has."""
    device, limit, pinned, asked = shortfall
    return ConfigError(
        f"The pinned models do not fit together: {', '.join(sorted(models))} asks for "
        f"{size(asked)} on {device}, where the limit is {size(limit)} and the other pins hold "
        f"{size(pinned)}: {size(asked + pinned - limit)} too much.",
        hint="Raise [budget] limit, pin fewer models, or shrink their context or slots.",
        **_numbers(shortfall),
    )


def no_room(model: str, waited_s: float, shortfall: Shortfall, ceiling: int) -> AdmissionDenied:
    """The error of a request that waited while other programs held what the limit would allow."""
    device, limit, pinned, asked = shortfall
    return AdmissionDenied(
        f"{model} waited {waited_s:.1f} s: it asks for {size(asked)} on {device}, where other "
        f"programs leave {size(ceiling)} of {size(limit)} and pins hold {size(pinned)}.",
        hint="End other programs on the device, or lower [budget] reserve.",
        **_numbers(shortfall),
    )


def in_a_circle(shortfall: Shortfall, waits: Sequence[Mapping[str, Any]]) -> AdmissionDenied:
    """The error of the request that closed a circle of requests that wait for each other's pins.

    Args:
        shortfall: of the request that is denied.
        waits: the requests that wait for each other, each for pins of the next one's client or
            program, the last for pins of the first one's; the first is denied.
    """
    device, limit, pinned, asked = shortfall
    model = waits[0]["model"]
    circle = "; ".join(
        f"{wait['model']} of {_client(wait['client'], wait['program'])} waits for {_named(wait['pins'])}"
        for wait in waits
    )
    why = ": each holds what another waits for" if waits[1:] else ", which its own program holds"
    return AdmissionDenied(
        f"{circle}{why}. {model} asks for {size(asked)} on {device}, where the limit is "
        f"{size(limit)} and pinned models hold {size(pinned)}.",
        hint="Unpin first, or say how long to wait with deadline_s.",
        model=model,
        **_numbers(shortfall),
        pins=[dict(pin) for wait in waits for pin in wait["pins"]],
        waits=[{**wait, "pins": [pin["model"] for pin in wait["pins"]]} for wait in waits],
    )


def is_awaited(model: str, waiting: int) -> KeepwarmError:
    """The error of a hint that a model may leave while it loads for requests that wait."""
    return AdmissionDenied(
        f"{model} is loading for {waiting} waiting requests.",
        hint="Unload it when they are served, or cancel them.",
        model=model,
        waiting=waiting,
    )


def is_pinned(model: str, pins: Collection[str]) -> KeepwarmError:
    """The error of a hint that a pinned model may leave."""
    # An engine may serve several names, and another one than this may be the pinned one.
    by = "" if set(pins) == {model} else f" (by {', '.join(sorted(pins))})"
    return AdmissionDenied(f"{model} is pinned{by} and stays.", hint="Unpin it first.")
