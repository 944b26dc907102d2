"""The keeper's log and stderr stay small, whatever fails as fast as it can."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from shim.keeper.process.log_lines import (
    BURST,
    LINES_PER_S,
    REPEATED_S,
    BoundedHandler,
    LogBounds,
    LogFormat,
    bound_stream,
)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """The seconds it shows."""
        return self.now


def record(text: str, line: int = 1) -> logging.LogRecord:
    """A line of the log from a line of the code."""
    return logging.LogRecord("keepwarm.keeper", logging.WARNING, "f.py", line, text, (), None)


def texts(bounds: LogBounds, text: str, line: int = 1) -> list[str]:
    """What is written when a line is logged."""
    return [written.getMessage() for written in bounds.lines(record(text, line))]


def test_a_name_in_the_log_begins_no_record_of_its_own() -> None:
    """What follows a line break is indented, as a traceback is, and codes of a terminal are escapes."""
    told = LogFormat().format(record("model a\n2026-01-01 00:00:00.000 1 ERROR made up\x1b[2J\tx"))
    first, second = told.split("\n")
    assert first.endswith("WARNING model a")
    assert second == r"    2026-01-01 00:00:00.000 1 ERROR made up\x1b[2J\tx"


def test_a_repeated_line_is_written_once_and_counted() -> None:
    """The count comes with the next other line of the same place; other places are not concerned."""
    bounds = LogBounds(Clock())
    assert texts(bounds, "no descriptors") == ["no descriptors"]
    assert sum(len(texts(bounds, "no descriptors")) for _ in range(5000)) == 0
    assert texts(bounds, "no descriptors", line=2) == ["no descriptors"]
    assert texts(bounds, "again") == ["5000 times once more: no descriptors", "again"]


def test_a_line_that_goes_on_is_written_again_after_a_while() -> None:
    """A fault that lasts is logged again, and one that ended is counted to its end."""
    clock = Clock()
    bounds = LogBounds(clock)
    texts(bounds, "full")
    texts(bounds, "full")
    assert list(bounds.overdue()) == []
    clock.now += REPEATED_S
    assert [r.getMessage() for r in bounds.overdue()] == ["1 times once more: full"]
    clock.now += REPEATED_S
    assert list(bounds.overdue()) == []
    assert texts(bounds, "full") == ["full"]


def test_lines_that_differ_are_bounded_by_their_rate() -> None:
    """A burst passes whole; what is beyond the rate is left out and counted."""
    clock = Clock()
    bounds = LogBounds(clock)
    written = sum(len(texts(bounds, f"client c{n}")) for n in range(10_000))
    assert BURST <= written <= BURST + 2
    clock.now += 2.0
    said = texts(bounds, "client last")
    assert said[0].startswith(f"{10_000 - written} times and others like it: ")
    assert said[1] == "client last"
    later = sum(len(texts(bounds, f"more {n}")) for n in range(10_000))
    assert later <= 2 * LINES_PER_S


def test_the_log_of_a_fault_in_a_loop_is_a_few_lines(tmp_path: Path) -> None:
    """As it is written to the file, in one piece with its count."""
    file = tmp_path / "keeper.log"
    handler = BoundedHandler(file)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for _ in range(20_000):
        logger.warning("socket.accept() out of system resource")
    logger.warning("something else")
    handler.write_counts()
    handler.close()
    assert len(file.read_text().splitlines()) == 2


def test_a_file_that_grows_is_emptied_and_nothing_else_is(tmp_path: Path) -> None:
    """Stderr may also be a pipe or a terminal."""
    with (tmp_path / "keeper.err").open("ab") as file:
        file.write(b"x" * 100)
        file.flush()
        bound_stream(file.fileno(), 100)
        assert os.fstat(file.fileno()).st_size == 100
        bound_stream(file.fileno(), 99)
        file.write(b"y")
        file.flush()
        assert (tmp_path / "keeper.err").read_bytes() == b"y"
    reader, writer = os.pipe()
    bound_stream(writer, 0)
    os.close(reader)
    os.close(writer)
