"""Footprints of files, and what a real llama-server says of its buffers, for the tests of footprints."""

from __future__ import annotations

import re
from os import environ
from pathlib import Path

from backends.footprint.inspect import Inspector, RequestedSource
from backends.gguf.header import read_header
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from budget.footprint import HOST, EngineArgs, Placement


def footprint_of(path: Path, args: EngineArgs, source: RequestedSource = "auto") -> Placement:
    """The placement of a model file on the host, as a fresh inspector finds it."""
    return Inspector().placement(read_header(path), args, HOST, source)


def logged_until_ready(model: Path, args: EngineArgs, folder: Path) -> list[str]:
    """The lines of a real llama-server's log before it is ready; it is ended then."""
    binary = find_binary("llama-server")
    settings = LaunchSettings(model, "m", folder / "s.sock", folder, 2, 2)
    log = folder / "log"

    def is_ready() -> bool:
        return re.search("listening|model loaded", log.read_text(errors="replace")) is not None

    with serving(
        server_argv(binary, args, settings), {**environ, **library_env(binary)}, log, is_ready
    ):
        return log.read_text(errors="replace").splitlines()
