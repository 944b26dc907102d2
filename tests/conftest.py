"""Fixtures that several areas share: tiny real models, folders short enough for Unix sockets."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.demo.models import make_models

# A job started in the background inherits an ignored SIGINT, and so would every process started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Hundreds of keepers and commands are started; without bytecode each one compiles every source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side run files, each whole: its tests share keepers. All of a demo's drive real engines.

    First, because pytest-xdist reads the groups, and `-m` the marks, in the same hook.
    """
    for item in items:
        place = item.path.relative_to(_REPOSITORY / "tests")
        item.add_marker(pytest.mark.xdist_group(str(place)))
        if place.parts[0] == "demo":
            item.add_marker(pytest.mark.real)


def pytest_collection_finish() -> None:
    """What collecting thousands of tests made is not looked through by every garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, Path]:
    """Real GGUF files of 1 to 3 MB by role name; made once, then found in `models/tiny`."""
    with (_REPOSITORY / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make_models(_REPOSITORY / "models" / "tiny", tiny=True)


@pytest.fixture(autouse=True, scope="session")
def private_state() -> Iterator[None]:
    """What keepers learn from scripted engines is not kept among what this user's really learned.

    Nor do keepers of a test and of this user refuse each other's devices.
    """
    with (
        tempfile.TemporaryDirectory(prefix="kw-state-") as folder,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("XDG_STATE_HOME", folder)
        m.setenv("KEEPWARM_LOCK_DIR", f"{folder}/locks")
        yield


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A private folder whose path is short enough for sockets (pytest's own may not be)."""
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        yield Path(folder)
