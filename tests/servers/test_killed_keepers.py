"""What engines have started, once the process that runs them is killed: nothing is left of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.llama.binaries import find_binary
from tests.processes import alive, wait_until
from tests.servers.support import command, write_server

ROOT = Path(__file__).parents[2]
_STARTS = """
env -i PATH="$PATH" sh -c 'trap "" HUP TERM; sleep 600 & echo $! > nameless; wait' &
setsid sh -c 'trap "" HUP TERM; sleep 600 & echo $! > apart; wait' &
while ! [ -s nameless ] || ! [ -s apart ]; do sleep 0.01; done
"""
"""Starts a process without the engine's mark, as one that sets its title has none, and one that leaves
the group; neither minds its parent's death."""
_WORKER = """
import subprocess
def make():
    subprocess.run(["sh", "-c", open("starts.sh").read()], check=True)
    return lambda: None
"""
_WRAPS = """#!/bin/sh
if [ "$1" = --api-key-file ]; then cd {folder}; . ./starts.sh; fi
{server} "$@"
"""
_PROGRAM = """
import json, sys
from shim import Config, Shim
with Shim(Config.from_mapping(json.loads(sys.argv[1]), base=sys.argv[2]), share=True) as shim:
    shim.load("m")
    print("loaded", flush=True)
    sys.stdin.read()
"""


@contextmanager
def loaded(model: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs a model, once that is loaded."""
    config = {"budget": {"device": "host", "limit": "8GiB"}, "models": {"m": model}}
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(config), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"loaded\n"
        yield program
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("server", "killed"),
        pytest.param("server", "well", marks=pytest.mark.full),
        ("python", "killed"),
        ("python", "well"),
        pytest.param("llama-server", "killed", marks=[pytest.mark.real, pytest.mark.full]),
    ],
)
def test_what_an_engine_has_started_ends_with_its_keeper(
    tmp_path: Path, tiny_models: dict[str, Path], kind: str, ends: str
) -> None:
    """Also what has no mark in its environment, and what has left the engine's process group."""
    write_server(tmp_path)
    (tmp_path / "starts.sh").write_text(_STARTS)
    (tmp_path / "worker.py").write_text(_WORKER)
    shell = ["sh", "-c", '. ./starts.sh; exec "$@"', "sh", *command()]
    model = {"command": shell, "ready": "/health", "can": ["chat"], "bytes": "64MiB"}
    if kind == "python":
        model = {"factory": "worker:make", "backend": "python", "bytes": "64MiB"}
    if kind == "llama-server":
        script = tmp_path / "server.sh"
        script.write_text(_WRAPS.format(folder=tmp_path, server=find_binary("llama-server")))
        script.chmod(0o755)
        model = {"path": str(tiny_models["producer"]), "llama_server": str(script)}
    else:
        model["cwd"] = str(tmp_path)
    with loaded(model, tmp_path) as program:
        started = [int((tmp_path / name).read_text()) for name in ("nameless", "apart")]
        assert all(map(alive, started))
        if ends == "killed":
            program.send_signal(signal.SIGKILL)
        else:
            program.communicate()
        assert wait_until(lambda: not any(map(alive, started)))


_SHARES = """
import subprocess, sys
SHARES = "import time; from multiprocessing.shared_memory import SharedMemory as S;"
SHARES += "s = S(create=True, size=9); open('segment', 'w').write(s.name);"
SHARES += "open('shared', 'w').close(); time.sleep(600)"
def make():
    subprocess.Popen([sys.executable, "-c", SHARES])
    return lambda: None
"""


def test_the_shared_memory_of_what_it_started_goes_with_it(tmp_path: Path) -> None:
    """A process that is killed does not remove what it made there."""
    (tmp_path / "worker.py").write_text(_SHARES)
    model = {"factory": "worker:make", "backend": "python", "bytes": "64MiB", "cwd": str(tmp_path)}
    with loaded(model, tmp_path) as program:
        assert wait_until((tmp_path / "shared").exists)
        segment = Path("/dev/shm", (tmp_path / "segment").read_text())
        assert segment.exists()
        program.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not segment.exists())
