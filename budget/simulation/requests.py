"""Arrivals: rows of a trace, given as data, checked and in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from budget.errors import InvalidRequest

COLUMNS = ("arrival_s", "model", "prompt_tokens", "output_tokens")


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
    try:
        arrival_s = float(row["arrival_s"])
        prompt_tokens, output_tokens = int(row["prompt_tokens"]), int(row["output_tokens"])
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{where}: {error}.") from None
    if not math.isfinite(arrival_s) or prompt_tokens < 0 or output_tokens < 0:
        raise InvalidRequest(
            f"{where}: arrival_s {arrival_s}, prompt_tokens {prompt_tokens}, output_tokens "
            f"{output_tokens}; seconds must be finite and tokens 0 or more."
        )
    return Arrival(arrival_s, model, prompt_tokens, output_tokens)
