"""What a real llama-server says of its buffers, for the tests of footprints."""

from __future__ import annotations

import re
from os import environ
from pathlib import Path

from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from budget.footprint import EngineArgs


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
