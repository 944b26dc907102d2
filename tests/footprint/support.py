"""What a real llama-server says of its buffers, for the tests of footprints."""

from __future__ import annotations

import subprocess
from os import environ
from pathlib import Path

from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from budget.footprint import EngineArgs


def logged_until_ready(model: Path, args: EngineArgs, folder: Path) -> list[str]:
    """The lines of a real llama-server's log before it is ready; it is ended then."""
    binary = find_binary("llama-server")
    settings = LaunchSettings(model, "m", folder / "s.sock", folder, 2, 2)
    lines = []
    with subprocess.Popen(
        server_argv(binary, args, settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environ, **library_env(binary)},
    ) as server:
        assert server.stdout is not None
        for line in server.stdout:
            lines.append(line)
            if "listening" in line or "model loaded" in line:
                server.kill()
    return lines
