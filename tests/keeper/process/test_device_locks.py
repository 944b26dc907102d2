"""One keeper per device of the machine, for all users and sessions together."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from backends.machine.files.lock_holders import Holder
from budget.errors import ConfigError
from shim.keeper.process.device_locks import DeviceLocks, lock_devices
from tests.processes import wait_until
from tests.users import (
    OTHER_UID,
    ROOT,
    Say,
    as_root,
    other_user,
    said_by_other_user,
    start_python,
)

HOLD = """
import asyncio, os, sys
from pathlib import Path
from shim.keeper.process.device_locks import lock_devices
from backends.machine.files.lock_holders import Holder

async def hold():
    loop = asyncio.get_running_loop()
    with lock_devices(None, sys.argv[1:], Holder.this_process(Path("/its/folder"))) as locks:
        locks.answer_on(loop)
        print("held", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(hold())
"""
TRY = """
import sys
from pathlib import Path
from budget.errors import ConfigError
from shim.keeper.process.device_locks import lock_devices
from backends.machine.files.lock_holders import Holder
try:
    lock_devices(None, sys.argv[1:], Holder.this_process())
    print("taken")
except ConfigError as error:
    print(error)
"""
NOTE = Holder.this_process()


@pytest.fixture
def device() -> str:
    """A device that no keeper of this machine has."""
    return f"GPU-{uuid.uuid4()}"


def test_a_refusal_names_process_user_folder_and_the_command_that_ends_it(device: str) -> None:
    """Whatever environment either has."""
    with start_python(HOLD, "GPU-free-" + device, device) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as caught:
            lock_devices(None, [device], NOTE)
        process.communicate("")
    said = str(caught.value)
    assert f"Device {device} is booked by another keeper (process {process.pid} of user " in said
    assert "in /its/folder" in said
    assert "`KEEPWARM_RUNTIME_DIR=/its/folder keepwarm keeper stop`" in said
    holder = caught.value.facts["holder"]
    assert isinstance(holder, dict)
    assert holder["pid"] == process.pid
    with lock_devices(None, [device], NOTE):
        pass


def test_all_devices_are_taken_or_none(device: str) -> None:
    """What was taken before the refusal is free again."""
    with lock_devices(None, [device], NOTE), pytest.raises(ConfigError):
        lock_devices(None, [f"{device}-b", device], NOTE)
    with lock_devices(None, [f"{device}-b"], NOTE):
        pass


def test_a_killed_holder_has_no_device(device: str) -> None:
    """The kernel takes the lock back; nothing is left to clean."""
    with start_python(HOLD, device) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
    with lock_devices(None, [device], NOTE):
        pass


def test_a_stopped_holder_is_named_without_its_help(device: str) -> None:
    """By the kernel: process and user; it is not waited for."""
    with start_python(HOLD, device) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match=f"process {process.pid} of user ") as caught:
            lock_devices(None, [device], NOTE)
        process.kill()
    assert f"`kill {process.pid}`" in caught.value.hint


@as_root
def test_another_users_keeper_is_named_and_neither_user_can_be_in_the_way_of_files(
    device: str,
) -> None:
    """Both ways round, without a folder that they share."""
    note = Holder(folder="/its/folder")

    def hold(say: Say) -> DeviceLocks:
        locks = lock_devices(None, [device], note)
        say("held")
        return locks

    def refused(say: Say) -> None:
        with pytest.raises(ConfigError) as caught:
            lock_devices(None, [device], note)
        say(caught.value)

    with other_user(hold) as other:
        assert other.hear() == "held"
        with pytest.raises(ConfigError, match=f"process {other.pid} of user {OTHER_UID}") as caught:
            lock_devices(None, [device], NOTE)
    assert f"`sudo kill {other.pid}`" in caught.value.hint
    with lock_devices(None, [device], NOTE):
        assert f"process {os.getpid()} of user root (0)" in said_by_other_user(refused)


@as_root
def test_a_session_with_private_folders_finds_the_lock(device: str) -> None:
    """As a service with PrivateTmp has: other files in /tmp, /dev/shm and /run/lock."""
    folders = ("/tmp", "/dev/shm", "/run/lock")
    # A clone under one of them would be hidden with its interpreter.
    private = " && ".join(
        f"mount -t tmpfs private {folder}" for folder in folders if not ROOT.is_relative_to(folder)
    )
    command = (sys.executable, TRY, device)
    with lock_devices(None, [device], NOTE):
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f'{private} && exec "$0" -c "$1" "$2"', *command],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": "/dev/shm"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert "is booked by another keeper" in done.stdout


def test_a_forked_child_does_not_hold_its_parents_device(device: str) -> None:
    """A program that forks and then closes its inline keeper gives the device back."""
    locks = lock_devices(None, [device], NOTE)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    locks.release()

    def is_free() -> bool:
        try:
            lock_devices(None, [device], NOTE).release()
        except ConfigError:
            return False
        return True

    try:
        # The child closes its copies a moment after the fork.
        assert wait_until(is_free)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_askers_do_not_fill_the_holders_queue(device: str) -> None:
    """However often it was asked, the next question is answered, too."""

    async def hold() -> set[str]:
        loop = asyncio.get_running_loop()
        with lock_devices(None, [device], Holder.this_process(Path("/mine"))) as locks:
            locks.answer_on(loop)
            return {await loop.run_in_executor(None, ask) for _ in range(200)}

    def ask() -> str:
        with pytest.raises(ConfigError) as caught:
            lock_devices(None, [device], NOTE)
        return str(caught.value)

    (said,) = asyncio.run(hold())
    assert "in /mine" in said


def test_names_of_devices_that_are_no_names_of_files_stay_apart(tmp_path: Path) -> None:
    """`rpc-a:1-0` and `rpc-a-1-0` are two devices; a very long name is one as well."""
    names = ["rpc-a:1-0", "rpc-a-1-0", "x" * 300, "x" * 301]
    with lock_devices(tmp_path, names, NOTE), lock_devices(None, names, NOTE):
        assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_of_locks_that_cannot_be_used_is_a_typed_refusal(tmp_path: Path) -> None:
    """It names the file and the variable."""
    os.mkfifo(tmp_path / "keepwarm-device-GPU-a.lock")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        lock_devices(tmp_path, ["GPU-a"], NOTE)
    assert "$KEEPWARM_LOCK_DIR" in caught.value.hint
