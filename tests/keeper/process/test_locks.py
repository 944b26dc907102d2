"""Lock files in folders that others write to, and what is said of a lock's holder."""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from backends.machine.files.file_locks import SHARED, FileLock, is_held, lock_keeper
from backends.machine.files.lock_holders import Holder
from budget.errors import ConfigError, KeeperUnavailable
from tests.users import OTHER_UID, Say, as_root, other_user, said_by_other_user, start_python

HOLD = """
import os, sys
from pathlib import Path
from backends.machine.files.lock_holders import Holder
from backends.machine.files.file_locks import FileLock
lock = FileLock(Path(sys.argv[1]), note=Holder.this_process(Path("/the/folder")))
print(lock.try_acquire(), os.getpid(), flush=True)
sys.stdin.read()
"""


def try_as_other_user(path: Path, say: Say) -> None:
    """Say whether the lock of a file could be taken, or why it is refused."""
    try:
        say(FileLock(path).try_acquire())
    except ConfigError as error:
        say(f"refused: {error}")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder such as /tmp: all may write, none may remove another's file."""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def make(kind: str, path: Path, target: Path) -> None:
    """Something that is no lock file, where one should be."""
    if kind == "fifo":
        os.mkfifo(path, 0o666)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "socket"])
def test_what_is_no_file_is_refused_at_once_with_its_owners_name(
    shared: Path, kind: str, tmp_path: Path
) -> None:
    """Nothing is waited for and no link is followed; what the link leads to stays as it is."""
    target = tmp_path / "precious"
    target.write_text("precious")
    path = shared / "a.lock"
    make(kind, path, target)
    with pytest.raises(
        ConfigError, match=r"a\.lock cannot be used: .*It belongs to user"
    ) as caught:
        FileLock(path, variable="KEEPWARM_LOCK_DIR").try_acquire()
    assert "$KEEPWARM_LOCK_DIR" in caught.value.hint
    assert caught.value.facts["folder"] == str(shared)
    assert target.read_text() == "precious"
    assert not is_held(path)
    assert FileLock(path).holder() == Holder()


@as_root
def test_another_users_fifo_does_not_hang_and_is_named(shared: Path) -> None:
    """Another user that writes to the folder first cannot stop a keeper silently."""
    path = shared / "a.lock"
    os.mkfifo(path, 0o666)
    os.chown(path, OTHER_UID, OTHER_UID)
    with pytest.raises(ConfigError, match=f"It belongs to user {OTHER_UID}"):
        FileLock(path).try_acquire()


@as_root
def test_a_file_that_another_user_may_not_read_is_a_typed_refusal(shared: Path) -> None:
    """It names the file and its owner."""
    path = shared / "a.lock"
    path.touch(mode=0o600)
    said = said_by_other_user(partial(try_as_other_user, path))
    assert said.startswith("refused:")
    assert "Permission denied" in said
    assert "user root (0)" in said


@as_root
def test_users_share_a_lock_file_whatever_the_umask_of_its_maker(shared: Path) -> None:
    """One user's keeper excludes another's, in both directions."""
    path = shared / "a.lock"
    before = os.umask(0o077)
    try:
        with FileLock(path, mode=SHARED) as lock:
            assert lock.try_acquire()
            assert said_by_other_user(partial(try_as_other_user, path)) == "False"
    finally:
        os.umask(before)
    assert said_by_other_user(partial(try_as_other_user, path)) == "True"


@as_root
def test_a_holder_that_may_not_write_into_the_file_is_still_named(shared: Path) -> None:
    """The file's note of an earlier holder is not shown as that of this one."""
    path = shared / "a.lock"
    with FileLock(path, mode=SHARED, note=Holder.this_process(Path("/earlier"))) as first:
        assert first.try_acquire()

    def hold(say: Say) -> FileLock:
        lock = FileLock(path)
        say(lock.try_acquire())
        return lock

    with other_user(hold) as other:
        assert other.hear() == "True"
        lock = FileLock(path)
        assert not lock.try_acquire()
        assert lock.holder() == Holder(other.pid, OTHER_UID)


def test_a_file_of_another_user_is_never_opened_as_if_it_were_to_be_made(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses O_CREAT for it in a sticky folder (fs.protected_regular)."""
    path = shared / "a.lock"
    path.touch(mode=0o644)
    real = os.open

    def protected(name: Path, flags: int, mode: int = 0o777) -> int:
        if Path(name) == path and flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", protected)
    with FileLock(path) as lock:
        assert lock.try_acquire()


def test_a_hard_link_to_a_file_of_ours_is_not_written_to(shared: Path, tmp_path: Path) -> None:
    """What it also is may be anything."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (shared / "a.lock").hardlink_to(target)
    with FileLock(shared / "a.lock") as lock:
        assert lock.try_acquire()
    assert target.read_text() == "precious"


def test_a_lock_file_that_is_removed_and_made_again_has_one_holder(tmp_path: Path) -> None:
    """The first learns that the path leads elsewhere; the second has the file that is there."""
    path = tmp_path / "a.lock"
    with FileLock(path) as first, FileLock(path) as second:
        assert first.try_acquire()
        assert first.still_there()
        path.unlink()
        assert not first.still_there()
        assert second.try_acquire()
        assert not first.still_there()
        assert second.still_there()


def test_a_damaged_note_says_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    """Neither garbage nor impossible values in the file are shown as a holder."""
    path = tmp_path / "a.lock"
    for text in (b"", b"\xff\xfe", b"[1]", b'{"pid": {}, "folder": 1, "inline": 2}', b"1" * 9000):
        path.write_bytes(text)
        assert FileLock(path).holder() == Holder()


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    """A program that forks and then closes its inline keeper gives the lock back."""
    path = tmp_path / "a.lock"
    lock = FileLock(path)
    assert lock.try_acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(reader, 1)
        assert is_held(path)
        lock.release()
        assert not is_held(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_keeper_of_a_folder_hears_whose_it_is_and_how_to_end_it(tmp_path: Path) -> None:
    """Process, user, folder, and the command."""
    with start_python(HOLD, str(tmp_path / "keeper.lock")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(KeeperUnavailable) as caught:
            lock_keeper(tmp_path)
        process.communicate("")
    said = str(caught.value)
    assert f"process {process.pid} of user " in said
    assert "in /the/folder" in said
    assert "`KEEPWARM_RUNTIME_DIR=/the/folder keepwarm keeper stop`" in said


def test_a_lock_that_is_given_back_is_taken_within_the_bound(tmp_path: Path) -> None:
    """And one that is not is not waited for without end."""
    path = tmp_path / "a.lock"
    with start_python(HOLD, str(path)) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        with FileLock(path) as lock:
            assert not lock.acquire_within(0.0)
            process.stdin.close()
            assert lock.acquire_within(30.0)
        process.stdin = None
