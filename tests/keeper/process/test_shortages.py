"""The error of a shortage names the limit, its value, and what to do."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.machine import shortages
from backends.machine.shortages import narrow_limits, refused
from budget.errors import KeeperUnavailable
from shim.config import Config
from shim.wire import launch


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Limits as a test knows them."""
    found = {
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 60,
        resource.RLIMIT_AS: 200_000 * 1024,
        resource.RLIMIT_FSIZE: 65536,
    }
    free = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda number: (found.get(number, free), free))
    monkeypatch.setattr(shortages, "_CGROUPS", str(tmp_path))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "32 open files (`ulimit -n`)"),
        (RuntimeError("can't start new thread"), "60 processes and threads of this user"),
        (RuntimeError("can't start new thread"), "an address space of 200000 KiB (`ulimit -v`)"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "(`ulimit -u`)"),
        (MemoryError(), "out of memory. Limits here: an address space"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "(`ulimit -v`)"),
        (OSError(errno.EFBIG, "File too large"), "files of 65536 bytes (`ulimit -f`)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x."),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x."),
        (TimeoutError(), "TimeoutError"),
    ],
)
@pytest.mark.usefixtures("limited")
def test_a_refusal_names_the_limit_and_its_value(error: Exception, says: str) -> None:
    """Typed, with what could not be done first."""
    answer = refused(error, "The keeper cannot run")
    assert answer is not None
    assert answer.message.startswith("The keeper cannot run: ")
    assert says in answer.message


@pytest.mark.parametrize(
    ("code", "hint", "not_hint"),
    [
        (errno.EACCES, "owner and the mode", "memory"),
        (errno.EPERM, "owner", "memory"),
        (errno.ENOSPC, "Make room", "limit"),
        (errno.EDQUOT, "quota", "limit"),
        (errno.EROFS, "read-only", "memory"),
        (errno.EMFILE, "64 open files", "disk"),
        (errno.EAGAIN, "Raise the limit", "disk"),
    ],
)
def test_the_hint_is_about_what_was_refused(code: int, hint: str, not_hint: str) -> None:
    """A folder without permission has nothing to do with memory."""
    answer = refused(OSError(code, os.strerror(code), "/x"), "It failed")
    assert answer is not None
    assert hint in answer.hint
    assert not_hint not in answer.hint


def test_what_the_machine_did_not_refuse_is_no_shortage() -> None:
    """It stays a bug of ours."""
    assert refused(RuntimeError("a bug"), "It failed") is None
    assert refused(KeyError("ghost"), "It failed") is None


@pytest.mark.parametrize(
    ("line", "folder"), [("0::/a/b", "a/b"), ("8:pids:/a", "pids/a")], ids=["v2", "v1"]
)
def test_a_containers_bound_on_threads_is_named(
    line: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this user's own limit is not the one that was reached."""
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "pids.max").write_text("100\n")
    monkeypatch.setattr(shortages, "_CGROUPS", str(tmp_path))
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda p, **_: line if str(p) == "/proc/self/cgroup" else real(p)
    )
    assert "100 processes and threads of this container" in narrow_limits()


def test_a_start_without_permission_is_not_called_a_shortage(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint was about processes and memory."""
    python = tmp_path / "python"
    python.write_text("no program")
    python.chmod(0o600)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(KeeperUnavailable, match="Permission denied: ") as caught:
        launch.start(runtime_dir, Config.from_mapping({}), automatic=True)
    assert "owner and the mode" in caught.value.hint


STARTS = """
import json, resource, sys
from pathlib import Path
from budget.errors import KeepwarmError
from shim.config import Config
from shim.wire.launch import start
number, limit = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(number, (limit, limit))
try:
    start(Path(sys.argv[1]), Config.from_mapping({"budget": {"device": "host"}}), automatic=True)
except KeepwarmError as error:
    print(json.dumps(error.to_wire()))
"""


@pytest.mark.parametrize(
    ("number", "limit", "says"),
    [
        (resource.RLIMIT_NOFILE, 12, "12 open files"),
        (resource.RLIMIT_NOFILE, 24, "24 open files"),
        (resource.RLIMIT_AS, 60_000 << 10, "60000 KiB"),
    ],
)
def test_a_keeper_that_cannot_start_under_a_limit_says_which(
    runtime_dir: Path, number: int, limit: int, says: str
) -> None:
    """Files, threads, memory: typed, also where its Python cannot even import."""
    done = subprocess.run(
        [sys.executable, "-c", STARTS, str(runtime_dir), str(number), str(limit)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["error"] == "KeeperUnavailable"
    assert says in f"{answer['message']} {answer['hint']}"
