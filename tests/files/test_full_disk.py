"""A full or read-only disk costs what would have been kept, with one line, and nothing that was kept."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.machine.files import folders
from backends.machine.files import whole_files as files
from backends.machine.files.unwritten import UNWRITTEN
from budget.errors import KeepwarmError
from shim.keeper.kv.folder import MARKER, mark
from shim.keeper.process.log_lines import BoundedHandler
from tests.files.damage import STATE_FILES, StateFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("KEEPWARM_RUNTIME_DIR", str(tmp_path / "r"))
    monkeypatch.setattr(UNWRITTEN, "_folders", {})
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("call", ["fsync", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("row", STATE_FILES, ids=lambda row: row.name)
def test_what_cannot_be_written_leaves_the_old_file_and_one_line(
    row: StateFile,
    code: int,
    call: str,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No unfinished file is left; it is said, or raised to the command that asked for the file."""
    row.write()
    before = contents(places)
    real = getattr(os, call)

    def full(*args: object, **options: object) -> object:
        if call == "open" and not str(args[0]).endswith(".new"):
            return real(*args, **options)
        raise OSError(code, os.strerror(code))

    caplog.clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "keepwarm"):
        patch.setattr(os, call, full)
        try:
            row.again()
        except (OSError, KeepwarmError) as error:
            assert row.raises, error
            assert os.strerror(code) in str(error)
    assert contents(places) == before
    (answer,) = UNWRITTEN.rows()
    assert (os.strerror(code), 1) == (answer["text"], answer["failures"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if row.raises else 1), said
    row.again()
    assert row.used()
    assert UNWRITTEN.rows() == []


CHILD = """
import json, logging, resource, sys
from tests.files.damage import STATE_FILES
rows = {row.name: row for row in STATE_FILES}
for row in rows.values():
    row.write()
said = []
class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("keepwarm").addHandler(Said())
resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
outcomes = {}
for name, row in rows.items():
    said.clear()
    try:
        row.again()
        raised = ""
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    outcomes[name] = [raised, list(said)]
print(json.dumps(outcomes))
"""


def test_a_disk_that_really_takes_no_more_is_survived(places: Path) -> None:
    """A process that may write eight bytes to a file: the kernel itself breaks each write off."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    for row in STATE_FILES:
        raised, said = answer[row.name]
        assert bool(raised) == row.raises, raised
        assert len(said) == (0 if row.raises else 1), said
        assert "File too large" in (raised or said[0])
    assert not [name for name in contents(places) if name.endswith(".new")]
    assert all(row.used() for row in STATE_FILES)


def test_a_failure_that_lasts_is_said_once(
    places: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The keeper saves what the policy learned again and again; a full disk does not fill the log."""
    row = next(row for row in STATE_FILES if row.name == "policy")
    row.write()

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for lines in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for _ in range(3):
                row.again()
        assert len(caplog.records) == lines
        row.again()


def test_a_folder_of_kv_state_that_cannot_be_marked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a marker nothing may be deleted there, so nothing is kept there either."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "kv").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        mark(tmp_path / "kv")
    assert not (tmp_path / "kv" / MARKER).exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ELOOP])
def test_a_file_that_may_not_be_read_is_set_aside(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the next write would replace it; so it is not lost."""
    path = tmp_path / "state.json"
    path.write_text("{}")
    refuse_to_open(path, code, monkeypatch)
    assert files.read_shape(path, "the state", dict) is None
    assert len(caplog.records) == 1
    assert path.with_name("state.json.damaged").read_text() == "{}"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_file_that_cannot_be_read_at_the_moment_stays(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many open files, or a server that is away, say nothing about the file."""
    path = tmp_path / "state.json"
    path.write_text("{}")
    refuse_to_open(path, code, monkeypatch)
    assert files.read_shape(path, "the state", dict) is None
    assert len(caplog.records) == 1
    assert path.read_text() == "{}"


def refuse_to_open(path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every `open` of a file fail."""
    real = os.open

    def failing(name: str | Path, *args: int, **options: int) -> int:
        if str(name) == str(path):
            raise OSError(code, os.strerror(code))
        return real(name, *args, **options)

    monkeypatch.setattr(os, "open", failing)


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    """Unfinished files once their writer is gone, damaged ones after a month; other files stay."""
    gone = next(pid for pid in range(4_000_000, 5_000_000) if not Path(f"/proc/{pid}").exists())
    mine = f".plan.json.{os.getpid()}-1.new"
    theirs = f".plan.json.{gone}-7.new"
    others = [".vimrc.new", "notes.new", "order-1.json", "plan.json", ".plan.json.new"]
    for name in (mine, theirs, "plan.json.damaged", *others):
        (tmp_path / name).write_text("")
    (tmp_path / "a.damaged").mkdir()
    (tmp_path / "b.damaged").symlink_to("notes.new")
    everything = {p.name for p in tmp_path.iterdir()}
    now = (tmp_path / mine).stat().st_ctime
    files.sweep_leftovers(tmp_path, now=now + 1)
    assert {p.name for p in tmp_path.iterdir()} == everything, "it may be another container's"
    files.sweep_leftovers(tmp_path, now=now + 120)
    assert {p.name for p in tmp_path.iterdir()} == everything - {theirs}
    files.sweep_leftovers(tmp_path, now=now + 40 * 86400)
    left = everything - {theirs, mine, "plan.json.damaged"}
    assert {p.name for p in tmp_path.iterdir()} == left
    files.sweep_leftovers(tmp_path / "nowhere")


def test_a_user_without_a_home_has_a_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's user that is in no password file: nothing raises, and nothing is kept."""
    monkeypatch.setattr(folders, "home_of", lambda _uid: None)
    for env in ({}, {"XDG_CACHE_HOME": "~no-user-of-that-name/x"}):
        assert folders.user_folder("XDG_CACHE_HOME", ".cache", env) == Path("/.cache/keepwarm")


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("/x", "/x/keepwarm"),
        ("~/x", "/homes/ada/x/keepwarm"),
        ("x", "/homes/ada/.cache/keepwarm"),
        ("", "/homes/ada/.cache/keepwarm"),
    ],
)
def test_a_variable_with_a_relative_folder_counts_as_not_set(value: str, folder: str) -> None:
    """The folder would be another one in each working folder; the standard says so, too."""
    env = {"HOME": "/homes/ada", "XDG_CACHE_HOME": value}
    assert folders.user_folder("XDG_CACHE_HOME", ".cache", env) == Path(folder)


def test_a_relative_folder_is_said_once_by_its_variable(caplog: pytest.LogCaptureFixture) -> None:
    """The user meant something by it. A relative HOME counts as not set, too."""
    folders._warn_relative.cache_clear()
    env = {"HOME": "somewhere", "XDG_STATE_HOME": "state"}
    for _ in range(2):
        found = folders.user_folder("XDG_STATE_HOME", ".local/state", env)
        assert found == (folders.home_of(os.getuid()) or Path("/")) / ".local/state/keepwarm"
    (record,) = caplog.records
    assert record.getMessage().startswith("$XDG_STATE_HOME is state, which is no absolute path")


def test_a_folder_counts_as_full_until_it_takes_a_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since its first failure, however often that is; a folder that is gone is not listed any more."""
    clock = iter([10.0, 13.0, 14.0, 20.0])
    monkeypatch.setattr("backends.machine.files.unwritten.time.monotonic", lambda: next(clock))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for _ in range(2):
        UNWRITTEN.failed(tmp_path, full)
    (row,) = UNWRITTEN.rows()
    assert (row["failing_s"], row["failures"]) == (4.0, 2)
    assert str(tmp_path) in row["task"]
    UNWRITTEN.failed(tmp_path / "gone", full)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _fd, data: len(data) // 2)
        UNWRITTEN.try_again()
    assert list(UNWRITTEN._folders) == [tmp_path]
    UNWRITTEN.try_again()
    assert UNWRITTEN._folders == {}
    assert list(tmp_path.iterdir()) == []


class FullDisk(io.StringIO):
    """A file whose bytes stay in its buffer while its disk is full."""

    full = True

    def flush(self) -> None:
        """Write what is in the buffer."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_cannot_be_written_is_reported_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Until a line is written again; no traceback goes to the same disk."""
    handler = BoundedHandler(tmp_path / "keeper.log")
    handler.close()
    disk = FullDisk()
    monkeypatch.setattr(handler, "stream", disk)
    for number in (1, 2):
        handler.emit(logging.LogRecord("keepwarm", 20, __file__, number, "a line", (), None))
    (row,) = UNWRITTEN.rows()
    assert (row["task"], row["failures"]) == (f"writing in {tmp_path}", 2)
    assert row["text"] == "No space left on device"
    handler.write_counts()
    assert UNWRITTEN.rows()[0]["failures"] == 3
    disk.full = False
    handler.write_counts()
    assert UNWRITTEN.rows() == []
    disk.full = True
    handler.emit(logging.LogRecord("keepwarm", 20, __file__, 3, "another", (), None))
    disk.full = False
    handler.emit(logging.LogRecord("keepwarm", 20, __file__, 4, "one more", (), None))
    assert UNWRITTEN.rows() == []
    assert capfd.readouterr().err == ""
