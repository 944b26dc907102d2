"""A `Shim` that its program never closes: it ends with its last reference, or with the program."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends.scripted import Script
from shim import Config, Shim
from shim.calls.lifetime import forgotten_shims
from shim.calls.lifetime.forgotten_shims import Owner
from tests.processes import wait_until
from tests.shim.conftest import Stage

PROGRAM = """
import sys, threading
from shim import Shim

def chat(after):
    after.join()
    reply = shim.chat("a", "Hi.", max_tokens=2)
    print(reply.residency.cold, shim.runtime)

budget = {"device": "host", "limit": "60MB"}
shim = Shim({"budget": budget, "models": {"a": {"path": sys.argv[1], "context": 256}}})
threading.Thread(target=chat, args=(threading.main_thread(),)).start()
"""


def test_a_shim_that_nothing_refers_to_ends_its_keeper(stage: Stage) -> None:
    """As `close` would: its folder is gone, and so is the keeper's thread."""
    before = threading.active_count()
    shim = Shim(stage.shim.config, factory=stage.make)
    shim.chat("a", "Hi.")
    folder = shim.runtime
    assert folder.is_dir()
    del shim
    assert wait_until(lambda: not folder.exists())
    assert wait_until(lambda: threading.active_count() <= before)


def test_a_stream_keeps_its_shim_open(stage: Stage) -> None:
    """`Shim(...).stream(...)` is read to its end; then both are gone."""
    stage.scripts["a"] = Script(tokens=["word "] * 50)
    config: Config = stage.shim.config

    def folder_and_stream() -> tuple[Path, object]:
        shim = Shim(config, factory=stage.make)
        shim.load("a")
        return shim.runtime, shim.stream("a", "Hi.")

    folder, stream = folder_and_stream()
    gc.collect()
    assert "".join(map(str, stream)) == "word " * 50  # type: ignore[call-overload]
    assert folder.is_dir()
    del stream
    assert wait_until(lambda: not folder.exists())


@pytest.mark.real
def test_a_program_that_closes_nothing_leaves_nothing(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Its threads still chat when the main one has returned; then the keeper and its folder are gone."""
    command = [sys.executable, "-c", PROGRAM, str(tiny_models["classifier"])]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    cold, folder = done.stdout.split()
    assert cold == "True"
    assert not Path(folder).exists()
    assert done.stderr == ""


class Closed:
    """A session that notes what closes it."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def close(self) -> None:
        """Note the thread."""
        self.threads.append(threading.current_thread())


def test_what_a_collection_closes_is_closed_in_a_thread_of_its_own() -> None:
    """A collection may run in the keeper's thread, which cannot wait for itself, or under any lock."""
    session = Closed()
    owner = Owner(session)
    del owner
    assert wait_until(lambda: len(session.threads) == 1)
    assert session.threads != [threading.current_thread()]


def test_what_is_open_at_the_end_of_the_program_is_closed_at_once() -> None:
    """No thread can be started then."""
    session = Closed()
    owner = Owner(session)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forgotten_shims, "_OPEN", [session])
        forgotten_shims._close_all()
    assert session.threads == [threading.current_thread()]
    del owner


def test_a_child_that_drops_its_parents_shim_closes_nothing() -> None:
    """It is the parent's."""
    session = Closed()
    forgotten_shims._close(session, os.getpid() + 1)
    assert session.threads == []
