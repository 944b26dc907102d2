"""Placing several engines at once: one option for each, so that all fit together."""

from __future__ import annotations

from collections.abc import Sequence

from budget.books.engines import EngineRecord

PLACING_STEPS = 10_000
"""Placements tried before pins are said not to fit together."""


def place_together(engines: list[EngineRecord], room: dict[str, int]) -> EngineRecord | None:
    """Set each engine's option so that all fit into `room` bytes by device.

    Returns:
        None when they fit, else the engine that finds no place; then nothing is set.
    """
    found, deepest = options_together(engines, room)
    if found is None:
        return engines[deepest]
    for engine, number in zip(engines, found, strict=True):
        engine.option_index = number
    return None


def options_together(
    engines: Sequence[EngineRecord], room: dict[str, int]
) -> tuple[list[int] | None, int]:
    """An option for each engine, so that all fit into `room` bytes by device. Changes nothing.

    Depth-first, each engine at its first option that leaves room for the rest.

    Returns:
        The options, or None with the number of the engine that finds no place.
    """
    steps = 0
    deepest = 0

    def descend(index: int, chosen: list[int]) -> list[int] | None:
        nonlocal steps, deepest
        steps += 1
        if index == len(engines):
            return chosen
        deepest = max(deepest, index)
        for number, option in enumerate(engines[index].spec.options):
            if steps > PLACING_STEPS:
                return None
            if any(amount > room[device] for device, amount in option.bookings):
                continue
            for device, amount in option.bookings:
                room[device] -= amount
            found = descend(index + 1, [*chosen, number])
            for device, amount in option.bookings:
                room[device] += amount
            if found is not None:
                return found
        return None

    return descend(0, []), deepest
