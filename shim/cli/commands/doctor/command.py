"""`keepwarm doctor`: a line for each thing that keepwarm needs of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Final

import click

from shim.cli.commands.doctor.finding import Check, Finding, Level, found_by
from shim.cli.commands.doctor.machine_checks import (
    check_cores,
    check_ends,
    check_gpus,
    check_limits,
    check_memory,
)
from shim.cli.commands.doctor.place_checks import check_folders, check_keeper, check_locks
from shim.cli.commands.doctor.program_checks import (
    check_keepwarm,
    check_llama_server,
    check_measuring,
)
from shim.cli.commands.doctor.settings_checks import (
    check_certificates,
    check_proxies,
    configuration_check,
)
from shim.cli.console.context import config_or_defaults, config_path
from shim.cli.console.failure import EXIT_OUTSIDE
from shim.cli.console.output import console, counted, print_json
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option

CHECKS: Final[tuple[Check, ...]] = (
    check_keepwarm,
    check_llama_server,
    check_measuring,
    check_gpus,
    check_memory,
    check_cores,
    check_limits,
    check_ends,
    check_folders,
    check_keeper,
    check_locks,
    check_proxies,
    check_certificates,
)
_STYLES: Final[dict[Level, str]] = {"ok": "green", "warn": "yellow", "bad": "red"}


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Check what keepwarm needs of this machine, and say what to do.

    Each line is ok, warn (keepwarm works with less) or bad (something will fail). The command starts,
    loads and downloads nothing. The exit code is 4 where a line is bad.

    Example: keepwarm doctor
    """
    config = config_or_defaults(ctx)
    checks = (configuration_check(config_path(ctx)), *CHECKS)
    found = [finding for check in checks for finding in found_by(check, config)]
    well = all(finding.level != "bad" for finding in found)
    if as_json:
        print_json({"ok": well, "findings": list(map(asdict, found))})
    else:
        _print(found)
    ctx.exit(0 if well else EXIT_OUTSIDE)


def _print(found: Sequence[Finding]) -> None:
    target = console()
    width = max(len(finding.check) for finding in found)
    indent = len("warn") + 2 + width + 2
    is_narrow = target.width < 2 * indent
    indent = 2 if is_narrow else indent
    for finding in found:
        target.print(f"{finding.level:<4}", style=_STYLES[finding.level], end="  ")
        said = [finding.text, *([finding.todo] if finding.todo else [])]
        lines = [line for text in said for line in wrap(text, max(20, target.width - indent))]
        say(
            f"{finding.check:<{width}}".rstrip()
            if is_narrow
            else f"{finding.check:<{width}}  {lines.pop(0)}"
        )
        for line in lines:
            say(f"{'':{indent}}{line}")
    count = {level: sum(f.level == level for f in found) for level in ("warn", "bad")}
    say(f"{len(found)} lines, {counted(count['warn'], 'warning')}, {count['bad']} bad")
