"""`keepwarm version`."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from backends.llama.binaries import build_id, find_binary
from budget.errors import ConfigError
from shim.cli.console.output import print_json
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Print the versions of keepwarm and llama.cpp."""
    found = versions()
    if as_json:
        print_json(found)
        return
    say(f"keepwarm {found['keepwarm']} (Python {found['python']})")
    server = found["llama_server"]
    if server is None:
        say(
            f"llama.cpp of llama-cpp-python {binding}, without llama-server"
            if (binding := found["llama_cpp_python"])
            else "llama.cpp: install llama-cpp-python, or run `make setup`"
        )
    else:
        say(f"llama.cpp of llama-cpp-python {found['llama_cpp_python']}: {server}")


def versions() -> dict[str, Any]:
    """`keepwarm`, `python`, `llama_cpp_python`, `llama_server` (its path) and `llama_build`.

    A value is None where the program is not installed.
    """
    try:
        server = find_binary("llama-server")
    except ConfigError:
        server = None
    return {
        "keepwarm": _version("keepwarm"),
        "python": platform.python_version(),
        "llama_cpp_python": _version("llama-cpp-python"),
        "llama_server": server,
        "llama_build": build_id(server) if server else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
