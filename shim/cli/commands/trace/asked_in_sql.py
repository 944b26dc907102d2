"""`keepwarm trace sql`: a question to a trace, by the engine of the Perfetto UI."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from backends.machine.children import ending_with_us
from budget.errors import DeadlineExceeded, InvalidRequest, OutsideError
from shim.cli.commands.trace.times import duration
from shim.cli.commands.trace.traced_runs import (
    WHICH_TRACES,
    folder_option,
    say_end_of,
    trace_path,
    traces_folder,
)
from shim.cli.console.failure import outside
from shim.cli.console.output import print_json, print_table
from shim.cli.console.shared_options import json_option
from traces.chrome.sql import TIMEOUT_S, SqlAnswer, SqlError, SqlTimeout, TooLarge, TraceProcessor


@click.command("sql")
@click.argument("words", metavar="[FILE|RUN] SQL", nargs=-1, required=True)
@click.option(
    "--timeout",
    "timeout_s",
    callback=duration,
    default=f"{TIMEOUT_S:g}s",
    show_default=True,
    metavar="TIME",
    help="How long the answer may take, such as 90s or 5m.",
)
@folder_option
@json_option
@click.pass_context
def sql_command(
    ctx: click.Context,
    words: tuple[str, ...],
    timeout_s: float,
    folder: Path | None,
    *,
    as_json: bool,
) -> None:
    """Ask a trace, by default the last one, in SQL. Times are nanoseconds.

    Tables are Perfetto's: slice, args, counter, thread_track, process, flow.

    Example: keepwarm trace sql "SELECT name, count(*) AS n FROM slice GROUP BY name"
    """
    if len(words) > 2:
        raise click.UsageError("Give a trace and one query in quotes, or the query alone.")
    *named, query = words
    path = trace_path(named[0] if named else None, traces_folder(ctx, folder))
    answer = asked(path, query, timeout_s)
    if as_json:
        print_json({"columns": list(answer.columns), "rows": [list(row) for row in answer.rows]})
    else:
        print_table(answer.columns, answer.rows)


_NO_TRACE: Final = "Unknown trace type"
"""What Perfetto says of a file of another kind."""


def asked(path: Path, query: str, timeout_s: float) -> SqlAnswer:
    """The answer of a trace to a query. The engine ends with this process, whatever ends that.

    Raises:
        InvalidRequest: it is no trace, or too large a one, or the query is not SQL over one.
        DeadlineExceeded: the answer took longer.
        OutsideError: the engine is not on this machine, or the file cannot be read.
    """
    try:
        with outside(path, "read"), TraceProcessor(ending_with_us()) as processor:
            say_end_of(path)
            (answer,) = processor.ask(path, [query], timeout_s=timeout_s)
            return answer
    except TooLarge as error:
        raise InvalidRequest(
            f"{error}.",
            hint="`keepwarm trace summary`, `diff` and `merge` read a trace of any size. A lower [trace] "
            "max_bytes makes several files of a run.",
        ) from error
    except SqlTimeout as error:
        raise DeadlineExceeded(
            f"{path}: {error}.",
            hint="Ask for less (WHERE, LIMIT), or give it more time with --timeout.",
        ) from error
    except SqlError as error:
        if _NO_TRACE in str(error):
            raise InvalidRequest(f"{path} is no trace.", hint=WHICH_TRACES) from error
        raise InvalidRequest(
            f"{path}: {error}.", hint="The tables are described at perfetto.dev/docs/analysis."
        ) from error
    except ModuleNotFoundError as error:
        raise OutsideError(str(error)) from error
