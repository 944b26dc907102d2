"""Prints an answer as it comes. Ctrl-Z gives its lease back, and the answer goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress

import click

from budget.errors import InvalidRequest
from shim.cli.console.progress import WaitingLine
from shim.cli.console.said_lines import say
from shim.cli.console.stopping import Stopped, Stops
from shim.replies import Reply
from shim.streams import ReplyStream


class PrintedAnswer:
    """Prints the pieces of an answer as they come, unless `quiet`.

    When Ctrl-Z breaks the answer off, its lease ends before the process stops. When the process is
    continued, the answer goes on where it was. An answer that cannot go on is asked for again.
    """

    def __init__(
        self, ask: Callable[[], ReplyStream], waiting: WaitingLine, *, quiet: bool
    ) -> None:
        self._ask = ask
        self._waiting = waiting
        self._quiet = quiet
        self._stream: ReplyStream | None = None
        self._printed = 0
        self._last = ""
        self._stops = Stops()

    @property
    def text(self) -> str:
        """The text so far."""
        return self._stream.text if self._stream is not None else ""

    def read(self, *, stops: bool) -> Reply:
        """Print the answer to its end. `stops`: the answer holds a lease, which Ctrl-Z has to end."""
        try:
            while True:
                try:
                    with self._stops.raised() if stops else nullcontext():
                        return self._read()
                except Stopped:
                    self._stops.stop_here()
        finally:
            if not self._quiet and self._last and not self._last.endswith("\n"):
                click.echo()

    def _read(self) -> Reply:
        if self._stream is not None:
            with suppress(InvalidRequest):
                return self._stream.reply
        with self._begun() as stream:
            # These pieces came before the stop and were not printed.
            self._print(stream.text[self._printed :])
            for piece in stream:
                self._print(str(piece))
            return stream.reply

    def _begun(self) -> ReplyStream:
        # An answer of which nothing is printed yet begins anew: its text alone may be more tokens than
        # were generated, and leave less room for the rest.
        rest = self._stream.go_on() if self._stream is not None and not self._quiet else None
        if rest is None and self._printed:
            if not self._quiet:
                told = "the answer was stopped in the middle and is asked for again:"
                click.echo(err=True)
                say(f"keepwarm: {told}", err=True)
            self._printed = 0
        self._stream = rest or self._ask()
        return self._stream

    def _print(self, text: str) -> None:
        if not text:
            return
        with self._stops.held_off():
            self._waiting.end()
            self._printed += len(text)
            self._last = text
            if not self._quiet:
                # In a pipe an answer stays as it is, with codes of terminals that are in it.
                click.echo(text, nl=False, color=True)
