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
from harness.demo.models import default_folder, demo_models
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
    help="Folder of the four models; a missing model is made. Default: a folder in the user's cache.",
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
    default=8,
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
    models: Path | None, device: str, n_requests: int, trace_dir: Path | None, *, as_json: bool
) -> None:
    """Run four real models under a budget for half of them.

    Every request goes through classify -> retrieve -> produce -> evaluate. The evaluator is pinned. A
    second process measures the engines' memory, and the run leaves a trace for Perfetto. The models
    have random weights, so their text is noise.
    """
    line = StatusLine()
    # The inline keeper's log lines would mix with the tables. Failures come as errors anyway.
    logging.getLogger("keepwarm").addHandler(logging.NullHandler())
    with _ending_cleanly(line):
        files = demo_models(models or default_folder(), line.tell)
        report = run_demo(files, device, n_requests, trace_dir, line.tell)
    if as_json:
        print_json(to_json(report))
    else:
        show(report)


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
