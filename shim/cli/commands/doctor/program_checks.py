"""What the doctor says of programs: keepwarm, llama-server, and what measures models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Final

from backends.llama.binaries import build_id, find_binary, library_env, runs_by_binding
from backends.llama.binding.binding_engine import NO_SERVER
from backends.machine.children import Answered, ask_child
from backends.machine.environment import child_environment
from backends.machine.nvml import list_gpus
from shim.cli.commands.about.version import versions
from shim.cli.commands.doctor.finding import Finding
from shim.config import Config

_ASK_LIMIT_S: Final = 20.0
_INSTALL: Final = "Run `make setup` again, or set KEEPWARM_LLAMA_BIN to a folder of another build."


def check_keepwarm(_: Config) -> Iterator[Finding]:
    """The versions of keepwarm and Python."""
    found = versions()
    text = f"keepwarm {found['keepwarm']} on Python {found['python']}"
    yield Finding("keepwarm", "ok", text, facts={"version": found["keepwarm"]})


def check_llama_server(_: Config) -> Iterator[Finding]:
    """Whether llama-server is there and runs, its version, and whether it knows this machine's GPUs."""
    if runs_by_binding():
        yield Finding("llama-server", "warn", NO_SERVER, _INSTALL)
        return
    server = find_binary("llama-server")
    done = _asked("--version")
    said = (done.out + done.log).strip().splitlines()
    if done.code or done.cut:
        why = said[-1] if said else f"status {done.code}"
        yield Finding("llama-server", "bad", f"{server} does not run: {why}", _INSTALL)
        return
    version = next((line for line in said if line.startswith("version")), said[0] if said else "")
    facts = {"file": str(server), "version": version, "build": build_id(server)}
    yield Finding("llama-server", "ok", f"{version or 'no version'}: {server}", facts=facts)
    if list_gpus().found and "CUDA" not in (listed := _asked("--list-devices")).out + listed.log:
        yield Finding(
            "llama-server",
            "bad",
            "this build of llama.cpp sees none of the GPUs: models run on the CPU",
            'Set KEEPWARM_LLAMA_BIN to a folder of a build with CUDA, or [budget] device = "host".',
        )


def _asked(option: str) -> Answered:
    server = find_binary("llama-server")
    env = child_environment(library_env(server))
    return ask_child([str(server), option], env, _ASK_LIMIT_S)


def check_measuring(_: Config) -> Iterator[Finding]:
    """Whether models can be measured before they are loaded."""
    if importlib.util.find_spec("llama_cpp") is not None:
        yield Finding("measuring", "ok", "llama_cpp measures models before they are loaded")
    else:
        yield Finding(
            "measuring",
            "warn",
            "llama_cpp is not installed: footprints are computed from headers, less exactly",
            "Run `make setup` again.",
        )
