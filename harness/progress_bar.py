"""Progress for people: a bar in a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, steps: int, what: str = "", /) -> None:
        """By so many steps, and says in a few words what is under way."""


_WIDTH: Final = 24
_TEXT: Final = 34
"""Together with the count and the time this is under 80 columns."""


@contextmanager
def progress_bar(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar on stderr; gives the function that advances it. Without a total it counts."""
    # A program that was started with stderr closed has none.
    if quiet or sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        yield lambda _steps, _what="": None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(_WIDTH),
        MofNCompleteColumn(),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(_short(what), total=total)

        def advance(steps: int, what: str = "", /) -> None:
            bar.update(task, advance=steps, description=_short(what) if what else None)

        yield advance


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"
