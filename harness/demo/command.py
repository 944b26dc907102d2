"""`keepwarm demo`."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from harness.demo.demo_run import run_demo
from harness.demo.found_models import default_folder, demo_models
from harness.demo.report import show, to_json
from shim.cli.console.output import StatusLine, print_json

_INTERRUPTED = 130
_TERMINATED = 143


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of the real models, as `make models` fills it. Default: a folder in the user's cache.",
)
@click.option(
    "--speech",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="A Python with faster-whisper, which hears the questions. Without it they are read.",
)
@click.option(
    "--device",
    default="host",
    show_default=True,
    help="The device: host, auto or cuda:N.",
)
@click.option(
    "--requests",
    "n_requests",
    type=click.IntRange(1, 1000),
    default=4,
    show_default=True,
    help="How many requests go through the pipeline.",
)
@click.option(
    "--trace-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for the trace and runs.jsonl. Default: the user's state folder.",
)
def demo_command(
    models: Path | None,
    speech: Path | None,
    device: str,
    n_requests: int,
    trace_dir: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run real models under a budget for half of their bytes.

    Every question about a person goes through hear -> classify -> retrieve -> produce -> evaluate ->
    answer, as far as the models are there. Producer and evaluator come with keepwarm: they were trained
    to write and to judge reports. The evaluator is pinned. A second process measures the engines'
    memory, and the run leaves a trace for Perfetto.
    """
    line = StatusLine()
    # The inline keeper's log lines would mix with the tables. Failures come as errors anyway.
    logging.getLogger("keepwarm").addHandler(logging.NullHandler())
    with _ending_cleanly(line):
        found = demo_models(models or default_folder(), speech, _note)
        report = run_demo(found, device, n_requests, trace_dir, line.tell)
    if as_json:
        print_json(to_json(report))
    else:
        show(report)


def _note(line: str) -> None:
    click.echo(f"keepwarm: {line}", err=True)


@contextmanager
def _ending_cleanly(line: StatusLine) -> Iterator[None]:
    """Make SIGTERM unwind as Ctrl-C does, so that no engine, folder or status line is left."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        line.clear()
        click.echo("keepwarm: the demo was interrupted", err=True)
        raise SystemExit(_INTERRUPTED) from None
    finally:
        line.clear()
        signal.signal(signal.SIGTERM, before)
