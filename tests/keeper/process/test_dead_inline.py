"""What the inline keeper of a killed program left behind goes with the next one's start."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from shim import Shim
from shim.keeper.process.dead_inline import remove_dead
from tests.processes import wait_until

LONG_AGO = (1e9, 1e9)


def folder_of_keeper(parent: Path, name: str, *files: str) -> tuple[Path, socket.socket]:
    """A folder as an inline keeper has it, and the socket that listens there."""
    folder = parent / f"keepwarm-{name}"
    folder.mkdir(mode=0o700)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "keeper.sock"))
    listening.listen()
    os.utime(folder / "keeper.sock", LONG_AGO)
    for file in files:
        (folder / file).write_text("sk-0")
    return folder, listening


def test_folders_of_keepers_that_are_gone_are_removed_and_no_others(runtime_dir: Path) -> None:
    """A keeper that lives, one that begins, a file of another program, a folder that others may enter."""
    key = "e-0123456789ab.key"
    dead, ended = folder_of_keeper(runtime_dir, "00000000", key)
    kept, lives = folder_of_keeper(runtime_dir, "00000001", key)
    foreign, second = folder_of_keeper(runtime_dir, "00000002", "letter.txt")
    begins, third = folder_of_keeper(runtime_dir, "00000003")
    os.utime(begins / "keeper.sock")
    shared, fourth = folder_of_keeper(runtime_dir, "00000004")
    shared.chmod(0o755)
    for listening in (ended, second, third, fourth):
        listening.close()
    with lives:
        remove_dead(runtime_dir / "keepwarm-own00000")
    assert sorted(runtime_dir.iterdir()) == [kept, foreign, begins, shared]
    assert (kept / key).exists()
    assert not dead.exists()


def test_an_inline_keeper_that_starts_removes_them(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie where it makes its own folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(runtime_dir))
    dead, ended = folder_of_keeper(runtime_dir, "00000000", "e-0123456789ab.key")
    ended.close()
    config = {"budget": {"device": "host", "limit": "64MiB"}, "models": {}}
    with Shim(config, share=True) as shim:
        shim.status()
        assert wait_until(lambda: not dead.exists())
