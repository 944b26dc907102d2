"""Containers and small systems as they are: no home, no writable root, a full disk, few descriptors.

Each test has namespaces of its own for mounts and for the network, so that nothing outside notices.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.users import OTHER_UID, ROOT

CAN_UNSHARE = (
    os.getuid() == 0
    and shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "-n", "true"], check=False, capture_output=True).returncode
    == 0
)
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not CAN_UNSHARE, reason="only root may make namespaces"),
]

NO_PASSWD_ENTRY = f"setpriv --reuid {OTHER_UID} --regid {OTHER_UID} --clear-groups env -i"
READ_ONLY = """
while read -r _ at _; do
    case $at in /dev*|/proc*|/sys*) ;; *) mount -o remount,ro,bind "$at" 2>/dev/null ;; esac
done < /proc/self/mounts
if touch /tmp/here 2>/dev/null; then echo "the root can be written"; fi
"""
FULL_DISK = """
mkdir -p {at}/full
mount -t tmpfs -o size=64k,mode=1777 none {at}/full
mount -t tmpfs -o size=4k,mode=1777 none /dev/shm
dd if=/dev/zero of={at}/full/x bs=1k 2>/dev/null
dd if=/dev/zero of=/dev/shm/x bs=1k 2>/dev/null
"""


@pytest.fixture
def project(tiny_models: dict[str, Path]) -> Iterator[Path]:
    """A project that every user can read."""
    folder = Path(tempfile.mkdtemp(prefix="kw-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copy(tiny_models["producer"], folder / "m.gguf")
    (folder / "keepwarm.toml").write_text(
        '[budget]\ndevice = "host"\nlimit = "100MB"\nreserve = 0\n'
        '[models.m]\npath = "m.gguf"\ncontext = 256\n'
    )
    yield folder
    shutil.rmtree(folder)


def readable(at: Path) -> str:
    """Lines that let every user reach the interpreter and this tree, wherever they lie."""
    lines = []
    needed = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    for number, path in enumerate(sorted(needed)):
        above = [p for p in reversed(path.parents) if not p.stat().st_mode & 0o001]
        if above:
            kept = at / f"kept-{number}"
            lines += [f"mkdir {kept}", f"mount --bind {path} {kept}"]
            lines += [f"mount -t tmpfs -o mode=755 none {above[0]}", f"mkdir -p {path}"]
            lines += [f"mount --bind {kept} {path}"]
    return "\n".join([*lines, "mount -t tmpfs -o mode=1777 none /dev/shm"])


def keepwarm(system: str, project: Path, *commands: str, user: str = NO_PASSWD_ENTRY) -> list[str]:
    """What commands print on a system of this kind, one after the other; the keeper ends with them."""
    program = shlex.join([sys.executable, "-m", "shim.cli"])
    steps = [f"{user} PATH=/usr/bin:/bin {program} {command} 2>&1" for command in commands]
    script = "\n".join(
        [readable(project), system, f"cd {project}", *(f"{step}; echo ---" for step in steps)]
    )
    end = f"{user} PATH=/usr/bin:/bin {program} keeper stop >/dev/null 2>&1"
    done = subprocess.run(
        ["unshare", "-m", "-n", "--propagation", "private", "sh", "-c", f"{script}\n{end}\n"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split("---\n")[:-1]


CHAT = "chat m Hello --max-tokens 1 --json"


def test_a_user_without_home_and_password_entry_is_served_in_a_read_only_container(
    project: Path,
) -> None:
    """With 256 descriptors: `docker run --read-only --user 54321`. One line says where state is kept."""
    system = READ_ONLY + "ulimit -n 256"
    chat, again, ps = keepwarm(system, project, CHAT, CHAT, "ps --json")
    assert '"completion_tokens": 1' in chat
    assert '"cold": false' in again
    assert chat.count("logs and what is learned are kept in /dev/shm/") == 1
    assert f'"runtime": "/dev/shm/keepwarm-{OTHER_UID}"' in ps


@pytest.mark.full
def test_a_keeper_whose_folder_is_on_a_full_disk_serves_and_says_so(project: Path) -> None:
    """Nothing is kept, and `ps` names each folder."""
    folders = f"HOME={project}/full KEEPWARM_RUNTIME_DIR={project}/full/r"
    chat, ps = keepwarm(
        FULL_DISK.format(at=project), project, CHAT, "ps", user=f"{NO_PASSWD_ENTRY} {folders}"
    )
    assert '"completion_tokens": 1' in chat
    assert f"writing in {project}/full/r " in ps
    assert "No space left on device" in ps


@pytest.mark.full
@pytest.mark.parametrize(
    ("system", "says"),
    [
        ("ulimit -n 24", "24 open files (`ulimit -n`)"),
        (
            READ_ONLY + "mount -o remount,ro /dev/shm",
            "No place for the keeper's folder can be used",
        ),
    ],
)
def test_a_system_on_which_no_keeper_can_run_is_named(
    project: Path, system: str, says: str
) -> None:
    """With the limit or the places, and what to do; `ps` hangs for no one."""
    chat, ps = keepwarm(system, project, CHAT, "ps")
    assert says in chat
    assert "keeper" in ps


@pytest.mark.full
def test_what_needs_a_folder_for_temporary_files_says_so_where_there_is_none(
    project: Path,
) -> None:
    """A measurement of the whole machine, which is no start of a keeper."""
    (build,) = keepwarm(READ_ONLY, project, "build --quick")
    assert "A folder for temporary files cannot be made" in build
    assert "Traceback" not in build
