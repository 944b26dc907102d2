"""Which files lie on another machine, by what the kernel says of its mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.machine.files import mounts
from backends.machine.files.mounts import is_far


@pytest.mark.parametrize(
    ("kind", "far"),
    [
        ("ext4", False),
        ("overlay", False),
        ("tmpfs", False),
        ("fuseblk", False),
        ("nfs4", True),
        ("cifs", True),
        ("fuse.sshfs", True),
        ("autofs", True),
    ],
)
def test_network_file_systems_are_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, far: bool
) -> None:
    """Also for a file that is not there, by the folder where it would be."""
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 26 0:999999 / /proc rw shared:14 - proc proc rw\n"
        "broken\n"
        f"36 35 {os.major(device)}:{os.minor(device)} / /m rw master:1 - {kind} server:/m rw\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    assert is_far(tmp_path) is far
    assert is_far(tmp_path / "gone" / "m.gguf") is far


def test_an_unknown_file_system_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a table of mounts, for a path that cannot be, and on this machine's own disk."""
    assert not is_far(tmp_path)
    assert not is_far(Path("\0"))
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "none")
    assert not is_far(tmp_path)
