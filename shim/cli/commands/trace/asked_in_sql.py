"""`keepwarm trace sql`: a question to a trace, by the engine of the Perfetto UI."""

from __future__ import annotations

from pathlib import Path

import click

from budget.errors import InvalidRequest, OutsideError
from shim.cli.commands.trace.traced_runs import folder_option, trace_path, traces_folder
from shim.cli.console.output import print_json, print_table
from shim.cli.console.shared_options import json_option
from traces.chrome.sql import SqlAnswer, SqlError, TraceProcessor
from traces.place import opened_regular


@click.command("sql")
@click.argument("words", metavar="[FILE|RUN] SQL", nargs=-1, required=True)
@folder_option
@json_option
@click.pass_context
def sql_command(
    ctx: click.Context, words: tuple[str, ...], folder: Path | None, *, as_json: bool
) -> None:
    """Ask a trace, by default the last one, in SQL. Times are nanoseconds.

    Tables are Perfetto's: slice, args, counter, thread_track, process, flow.

    Example: keepwarm trace sql "SELECT name, count(*) AS n FROM slice GROUP BY name"
    """
    if len(words) > 2:
        raise click.UsageError("Give a trace and one query in quotes, or the query alone.")
    *named, query = words
    path = trace_path(named[0] if named else None, folder or traces_folder(ctx))
    answer = asked(path, query)
    if as_json:
        print_json({"columns": list(answer.columns), "rows": [list(row) for row in answer.rows]})
    else:
        print_table(answer.columns, answer.rows)


def asked(path: Path, query: str) -> SqlAnswer:
    """The answer of a trace to a query.

    Raises:
        InvalidRequest: it is no trace, or the query is not SQL over one.
        OutsideError: the engine is not on this machine, or the file cannot be read.
    """
    try:
        with opened_regular(path):
            pass
        with TraceProcessor() as processor:
            return processor.ask(path, [query])[0]
    except SqlError as error:
        raise InvalidRequest(
            f"{path}: {error}", hint="The tables are described at perfetto.dev/docs/analysis."
        ) from error
    except ModuleNotFoundError as error:
        raise OutsideError(str(error)) from error
    except OSError as error:
        raise OutsideError(f"{path} cannot be read: {error.strerror or error}.") from error
