"""The faults inside the keeper, as `keepwarm ps` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shim.cli.console.output import span
from shim.cli.console.said_lines import say


def print_faults(keeper: Mapping[str, Any]) -> None:
    """A line for each recurring task that fails now, and for each kind of fault since the start."""
    failing = keeper.get("background", ())
    for row in failing:
        say(
            f"FAILING for {span(row['failing_s'])}: {row['task']} "
            f"({row['failures']} times in a row; {row['text']})"
        )
    names = {row["task"] for row in failing}
    for row in keeper.get("faults", ()):
        if row["kind"] not in names:
            say(
                f"faults: {row['kind']}, {row['count']} since the start, the last "
                f"{span(row['last_s'])} ago: {row['text']} (see the keeper's log)"
            )
    books = keeper.get("books")
    if books is not None:
        said = "they agree" if books["agree"] else f"THEY DO NOT AGREE: {books['text']}"
        say(f"books: checked {span(books['checked_s'])} ago, after an internal error: {said}")
