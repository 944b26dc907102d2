"""The standard streams of a command: closed, full or broken ones, other encodings, and terminals.

A failed write to stdout raises `OutputFailed`, and one to stderr is dropped. On a terminal, control
characters of a text are shown as escapes, since models, endpoints and files supply texts.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Final, TextIO

from backends.foreign.shown_text import escaped


class OutputFailed(BaseException):
    """A write to stdout failed.

    It is raised as `KeyboardInterrupt` is, so that leases end on the way out and no handler of other
    failures takes it for its own.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror or str(cause))
        self.reader_ended: Final = isinstance(cause, BrokenPipeError)


class _Raw(io.FileIO):
    """The descriptor of stdout or stderr, left open at the end. It is silent after its first failure."""

    def __init__(self, number: int, *, raises: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._raises = raises
        self._failed = False

    def write(self, data: bytes | bytearray | memoryview, /) -> int | None:  # type: ignore[override]
        if not self._failed:
            try:
                return super().write(data)
            except OSError as error:
                self._failed = True
                if self._raises:
                    raise OutputFailed(error) from error
        return len(data)


class Output(io.TextIOBase):
    """Text on a descriptor. `codes` is the same stream for keepwarm's own colours and movements.

    It has no `buffer`, so that click writes through it whatever the encoding is.
    """

    def __init__(self, raw: _Raw, encoding: str, errors: str) -> None:
        buffered = io.BufferedWriter(raw)  # type: ignore[type-var]
        self.codes: Final[TextIO] = io.TextIOWrapper(buffered, encoding, errors)
        self._terminal = raw.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the descriptor."""
        return self.codes.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What becomes of characters that it cannot hold. Without it, lines could not be edited."""
        return self.codes.errors

    def write(self, text: str | bytes, /) -> int:
        """Write a text; on a terminal its control characters are escapes that can be read.

        Raises:
            TypeError: no bytes at all, by which click asks whether this is a binary stream. It is none;
                but click writes the completions of a shell as bytes.
        """
        if isinstance(text, bytes):
            if not text:
                raise TypeError("a stream of text")
            text = text.decode("utf-8", "replace")
        return self.codes.write(escaped(text) if self._terminal else text)

    def flush(self) -> None:
        """Write what is buffered."""
        self.codes.flush()

    def writable(self) -> bool:
        """As every output."""
        return True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._terminal

    def fileno(self) -> int:
        """The number of the descriptor."""
        return self.codes.fileno()


def codes_of(stream: TextIO) -> TextIO:
    """Where keepwarm's own colours and movements of the cursor go: past the escaping of a stream."""
    return getattr(stream, "codes", stream)


def set_up() -> None:
    """Replace stdin, stdout and stderr by streams that stand a closed, full or broken descriptor."""
    _fill_closed()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _output(1, sys.stdout)
    sys.stderr = _output(2, sys.stderr)


def _fill_closed() -> None:
    """Open /dev/null where a descriptor is closed, lest the next file that is opened take its number.

    Input is empty, writes to stdout fail, and writes to stderr are lost.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, mode), True)  # noqa: FBT003


def _output(number: int, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    errors = before.errors if before is not None else "strict"
    # A character that a terminal or a file cannot hold is shown as an escape, too.
    lossless = "backslashreplace" if errors in (None, "strict") else str(errors)
    output: TextIO = Output(_Raw(number, raises=number == 1), encoding, lossless)  # type: ignore[assignment]
    return output
