"""Arrivals: rows of a trace, given as data, checked and in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from budget.errors import InvalidRequest

COLUMNS = ("arrival_s", "model", "prompt_tokens", "output_tokens")
MOST_TOKENS = 10**15
"""More than any request has: what is above is a slip, and no figure is made of it."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace: when it came (seconds), for which model, and how long it is."""

    arrival_s: float
    model: str
    prompt_tokens: int = 0
    output_tokens: int = 0


def parse_rows(rows: Iterable[Mapping[str, Any]], source: str) -> list[Arrival]:
    """The arrivals of a CSV file's rows, in the order in which they came.

    Args:
        rows: one mapping a line, as `csv.DictReader` gives them.
        source: the file's name, for error messages.

    Raises:
        InvalidRequest: a column is missing, or a value is not what it must be.
    """
    found = [_arrival(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]
    return sorted(found, key=lambda a: a.arrival_s)


def parse_runs(lines: Iterable[Mapping[str, Any]], source: str) -> list[Arrival]:
    """The arrivals of the lines of a `runs.jsonl`.

    Args:
        lines: one run each, with `started_s` (seconds on any clock) added to what the file tells.
        source: the file's name, for error messages.

    Raises:
        InvalidRequest: a line is not what keepwarm writes.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        requests, started_s = line.get("requests"), line.get("started_s")
        if not isinstance(requests, list) or not isinstance(started_s, int | float):
            raise InvalidRequest(f"{where}: a run needs `started` and a list `requests`.")
        for request in requests:
            if not isinstance(request, Mapping):
                raise InvalidRequest(f"{where}: found {request!r} where a request should be.")
            if request.get("remote") is True:
                continue
            row = {**request, "arrival_s": request.get("arrival_s", math.nan)}
            arrival = _arrival({key: row.get(key) or 0 for key in COLUMNS}, where)
            found.append(
                Arrival(
                    started_s + arrival.arrival_s,
                    arrival.model,
                    arrival.prompt_tokens,
                    arrival.output_tokens,
                )
            )
    found.sort(key=lambda a: a.arrival_s)
    first_s = found[0].arrival_s if found else 0.0
    return [
        Arrival(a.arrival_s - first_s, a.model, a.prompt_tokens, a.output_tokens) for a in found
    ]


def _arrival(row: Mapping[str, Any], where: str) -> Arrival:
    for column in COLUMNS:
        if row.get(column) is None:
            raise InvalidRequest(
                f"{where}: column {column} is missing.", hint=f"Needed: {', '.join(COLUMNS)}."
            )
    model = row["model"]
    # Real traces have rows without a name; as with any other model it is for the caller to know it.
    if not isinstance(model, str):
        raise InvalidRequest(f"{where}: model is {model!r}; a name is needed.")
    tokens = [_tokens(row[column], f"{where}: {column}") for column in COLUMNS[2:]]
    return Arrival(_seconds(row["arrival_s"], f"{where}: arrival_s"), model, *tokens)


def _seconds(value: Any, what: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InvalidRequest(f"{what} is {value!r}; a finite number of seconds is needed.")
    return seconds


def _tokens(value: Any, what: str) -> int:
    try:
        tokens = int(value)
    except (TypeError, ValueError, OverflowError):
        tokens = -1
    if not 0 <= tokens <= MOST_TOKENS:
        shown = str(value)[:40]
        raise InvalidRequest(f"{what} is {shown!r}; a whole number of 0 or more is needed.")
    return tokens
