"""Several files of traces as one: processes of a run, or runs beside one another, on one clock. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from traces import names
from traces.reading.stored_events import number_of

_APART: Final = 1000
"""Numbers of processes that each file may use; the next file's come after them."""


def started_at(events: Iterable[Mapping[str, Any]]) -> float | None:
    """A file's clock when its run began, less the time of day, in seconds; None without a run.

    The difference of two files' values is the difference of their clocks.
    """
    for event in events:
        args = event.get("args")
        if event.get("cat") == names.RUN and isinstance(args, Mapping) and names.STARTED in args:
            began = number_of(event.get("ts"))
            with suppress(ValueError, OverflowError):
                moment = datetime.fromisoformat(str(args[names.STARTED])).timestamp()
                if began is not None:
                    return began / 1e6 - moment
    return None


def merged(
    files: Sequence[Iterable[dict[str, Any]]], clocks: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """The events of all files, with numbers that do not meet and times on the first file's clock.

    Args:
        files: the events of each.
        clocks: `started_at` of each; a file without one keeps its times.
    """
    base = next((clock for clock in clocks if clock is not None), 0.0)
    for number, (events, clock) in enumerate(zip(files, clocks, strict=True)):
        shift_us = 0.0 if clock is None else (base - clock) * 1e6
        for event in events:
            yield _moved(event, number, shift_us)


def _moved(event: dict[str, Any], number: int, shift_us: float) -> dict[str, Any]:
    found = dict(event)
    if isinstance(found.get("pid"), int):
        found["pid"] += number * _APART
    began = number_of(found.pop("ts", None))
    if began is not None:
        found["ts"] = round(began + shift_us, 3)
    if "id" in found:
        found["id"] = f"{number}.{found['id']}"
    return found
