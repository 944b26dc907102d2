"""`keepwarm` as a process, also as `python -m shim.cli`: its streams, Ctrl-C, and its exit code."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

from shim.cli.console.interrupt_and_memory import end_at_ctrl_c, lack_of_memory
from shim.cli.console.standard_streams import OutputFailed, set_up

EXIT_OUTSIDE: Final = 4
EXIT_READER_ENDED: Final = 141
"""As of a program that SIGPIPE ended."""


def run() -> int:
    """Run the command of `sys.argv`, and return its exit code."""
    # Ctrl-C raises only within the command: before and after it there is nothing to give back.
    end_at_ctrl_c()
    set_up()
    try:
        code = _command()
        sys.stdout.flush()
    except OutputFailed as failure:
        if failure.reader_ended:
            return EXIT_READER_ENDED
        return _failed(f"stdout cannot be written: {failure}.")
    return code


def _command() -> int:
    try:
        main = import_module("shim.cli.root").main
    except (ImportError, MemoryError, OSError, SystemError) as error:
        said = lack_of_memory(error)
        if said is None:
            raise
        return _failed(said)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _failed(message: str) -> int:
    sys.stderr.write(f"keepwarm: error: {message}\n")
    sys.stderr.flush()
    return EXIT_OUTSIDE


if __name__ == "__main__":
    sys.exit(run())
