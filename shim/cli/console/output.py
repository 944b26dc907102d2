"""What commands print: tables, bars and figures with units as text, or JSON."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backends.foreign.shown_text import one_line
from budget.books.byte_text import size as size
from shim.cli.console.said_lines import say
from shim.cli.console.standard_streams import codes_of

_PIPE_COLUMNS: Final = 100_000
_GAP: Final = 2
_WORD: Final = 16
"""A longer word, a path for example, may be broken on a terminal that is narrow for it."""
_BAR: Final = 20
Row = Sequence[object]


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:  # noqa: FBT001, FBT002
        """Leave the cursor alone: a command that is killed would leave a terminal without one."""
        return not show


def console(*, err: bool = False) -> Console:
    """Where tables and bars go. In a pipe nothing is cut, wrapped or coloured, even by FORCE_COLOR."""
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        return _Console(file=codes_of(stream), soft_wrap=True, force_terminal=True)
    return Console(file=stream, soft_wrap=True, width=_PIPE_COLUMNS, force_terminal=False)


def print_table(
    columns: Sequence[str], rows: Sequence[Row], *, right: Sequence[str] = (), title: str = ""
) -> None:
    """A table without lines; `right` names the columns of numbers. In a pipe a row is one line.

    On a terminal too narrow for it each row is a block with a line for each of its cells.
    """
    if title:
        say(title)
    target = console()
    columns = [one_line(name) for name in columns]
    cells = [[Text("" if value is None else one_line(str(value))) for value in row] for row in rows]
    if _narrowest(columns, cells) > target.width:
        for row in cells:
            _print_lines(target, _block(columns, row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    _print_lines(target, table)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """The columns of a terminal that a table needs without breaking ordinary words."""
    texts = zip(columns, *([cell.plain for cell in row] for row in rows), strict=True)
    words = (
        [min(cell_len(word), _WORD) for text in column for word in text.split()] for column in texts
    )
    return sum(max(lengths, default=0) + _GAP for lengths in words) - _GAP


def _block(columns: Sequence[str], row: Sequence[Text]) -> Table:
    block = Table.grid(padding=(0, _GAP, 0, 0))
    for _ in ("name", "value"):
        block.add_column(overflow="fold")
    for name, cell in zip(columns, row, strict=True):
        if cell:
            block.add_row(Text(name, "bold"), cell)
    block.add_row()
    return block


def _print_lines(target: Console, table: Table) -> None:
    with target.capture() as captured:
        target.print(table, soft_wrap=False)
    for line in captured.get().splitlines():
        target.file.write(f"{line.rstrip()}\n")
    target.file.flush()


class StatusLine:
    """Says on stderr what a command waits for: a line of a terminal that changes, with a bar at times."""

    def __init__(self) -> None:
        self._console = console(err=True)
        self.shown = self._console.is_interactive
        self._lock = threading.Lock()
        self._live: Live | None = None

    def show(self, text: str, share: float | None = None) -> None:
        """Replace the line. Nothing at all where stderr is no terminal.

        Args:
            text: cut where the terminal ends.
            share: how much is done, from 0.0 to 1.0, for a bar before the text.
        """
        if not self.shown:
            return
        bar = min(_BAR, self._console.width // 3) if share is not None else 0
        told, line = Text(one_line(text)), Table.grid(padding=(0, 1, 0, 0))
        told.truncate(self._console.width - bar - 1, overflow="ellipsis")
        line.add_row(*([ProgressBar(1.0, share, width=bar)] if share is not None else []), told)
        with self._lock:
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(line, refresh=True)

    def tell(self, text: str) -> None:
        """Replace the line; where stderr is no terminal, print one."""
        if self.shown:
            self.show(text)
        else:
            say(text, err=True)

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.stop()

    def last(self, text: str) -> None:
        """Replace the line for good."""
        self.clear()
        if self.shown:
            say(text, err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; a path is a text."""
    text = json.dumps(value, ensure_ascii=False, default=os.fspath)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, default=os.fspath)
    click.echo(text)


def sizes(by_device: Mapping[str, float | None]) -> str:
    """Bytes by device: `host 1.50 GiB, cuda:0 4.83 GiB`; the name is left out of a lone host.

    None is `unknown`.
    """
    said = {d: "unknown" if amount is None else size(amount) for d, amount in by_device.items()}
    if set(said) <= {"host"}:
        return ", ".join(said.values())
    return ", ".join(f"{device} {text}" for device, text in said.items())


def counted(count: int, what: str) -> str:
    """A number of things: `1 load`, `2 loads`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def span(seconds: float | None) -> str:
    """A length of time: `0.42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
