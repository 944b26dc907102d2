"""`keepwarm config trust`: lets a file in the working folder use what only trusted files may use."""

from __future__ import annotations

import os
from pathlib import Path

import click

from budget.errors import ConfigError
from shim.cli.console.output import print_json, print_table
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config import FILE_NAME, TrustedFiles, risks_of_file, user_config_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--list", "listing", is_flag=True, help="Print the files that are trusted.")
@click.option("--revoke", is_flag=True, help="End the trust in the file.")
@json_option
def trust(file: Path | None, *, listing: bool, revoke: bool, as_json: bool) -> None:
    """Trust FILE, or the keepwarm.toml of this folder, for as long as it does not change.

    A keepwarm.toml that was merely found in the working folder is not trusted. Such a file may not name
    the key of an endpoint or an address of another machine. It may not give engines arguments that
    read, write or run something, and it may not have files written outside its folder. The command
    prints what the file uses of these.
    """
    trusted = TrustedFiles(user_config_file(os.environ).parent)
    if listing:
        _list(trusted, as_json=as_json)
        return
    chosen = Path.cwd() / (file or FILE_NAME)
    if revoke:
        known = trusted.revoke(chosen)
        if as_json:
            print_json({"file": chosen, "revoked": known})
        else:
            say(f"{chosen} {'is trusted no more' if known else 'was not trusted'}.")
        return
    if not chosen.is_file():
        raise ConfigError(f"There is no file {chosen}.", hint="Name one.", file=str(chosen))
    raw, found = risks_of_file(chosen)
    trusted.trust(chosen, raw)
    if as_json:
        print_json({"file": chosen, "trusted": True, "uses": [p.as_dict() for p in found]})
        return
    say(f"{chosen} is trusted until it changes.")
    for problem in found:
        say(f"  {problem.key}: {problem.found}")
    if not found:
        click.echo("  The file uses nothing that needs trust.")


def _list(trusted: TrustedFiles, *, as_json: bool) -> None:
    rows = trusted.rows()
    if as_json:
        files = [{"file": r.path, "sha256": r.sha256, "state": r.state} for r in rows]
        print_json({"list": trusted.path, "files": files})
    elif not rows:
        click.echo("No file is trusted.")
    else:
        print_table(("file", "state"), [(r.path, r.state) for r in rows])
