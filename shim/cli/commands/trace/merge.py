"""`keepwarm trace merge`: several traces as one file, and new files in general."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from typing import TextIO

import click

from budget.errors import InvalidRequest
from shim.cli.commands.trace.traced_runs import events_of, folder_option, trace_path, traces_folder
from shim.cli.console.failure import outside
from shim.cli.console.output import counted
from shim.cli.console.said_lines import say
from traces.reading.merged import merged, started_at


@click.command("merge")
@click.argument("traces", metavar="FILE|RUN...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file that is written; one that ends in .gz is packed.",
)
@folder_option
@click.pass_context
def merge_command(
    ctx: click.Context, traces: tuple[str, ...], output: Path, folder: Path | None
) -> None:
    """Put several traces into one file, on one clock: the processes of one run, or runs side by side.

    Of one trace it makes a whole file of what a cut one has.
    """
    place = traces_folder(ctx, folder)
    paths = [trace_path(one, place) for one in traces]
    _check_apart(paths)
    clocks = [started_at(events_of(path)) for path in paths]
    with new_file(output) as out:
        separator = "[\n"
        for event in merged([events_of(path) for path in paths], clocks):
            out.write(separator + json.dumps(event))
            separator = ",\n"
        out.write("\n]\n" if separator == ",\n" else "[\n]\n")
    say(f"{output}: {counted(len(paths), 'trace')}.")


def _check_apart(paths: Sequence[Path]) -> None:
    """Nothing, for traces that are different files.

    Raises:
        InvalidRequest: one is given twice: all its requests would count twice.
    """
    for first, second in combinations(paths, 2):
        with outside(first, "read"):
            same = first.samefile(second)
        if same:
            raise InvalidRequest(
                f"{first} is given twice.", hint="Give each trace once.", file=str(first)
            )


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A file that is not there yet, of mode 0600; packed where its name says so. A failure removes it.

    Raises:
        InvalidRequest: something is there.
        OutsideError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with outside(path, "written"):
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise InvalidRequest(f"{path} is there already.", hint="Name another file.") from error
    try:
        with outside(path, "written"), ExitStack() as held:
            raw = held.enter_context(os.fdopen(descriptor, "wb"))
            packs = path.name.endswith(".gz")
            data = held.enter_context(gzip.GzipFile(path.stem, "wb", 6, raw)) if packs else raw
            yield held.enter_context(io.TextIOWrapper(data, "utf-8"))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
