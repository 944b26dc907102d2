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
_RUN = os.getpid()


def end_as_if_interrupted(number: int, _frame: object) -> None:
    """Let fixtures end the servers that they started; a forked child ends as it would without this."""
    if os.getpid() == _RUN:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


# What a server of a fixture has started would outlive a run that is ended at once.
signal.signal(signal.SIGTERM, end_as_if_interrupted)
# Hundreds of keepers and commands are started; without bytecode each one compiles every source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# llama.cpp's threads wait for each other by computing. Beside another program on the same core that
# makes a token take 50 times as long; a single thread waits for none, and tiny models need no second.
os.environ["OMP_THREAD_LIMIT"] = "1"

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of a demo's tests drive real engines; `-m` reads the marks in the same hook, after this.

    Files run side by side. The longest come first, so that none of them runs alone at the end: the demo,
    then all that drives real llama.cpp.
    """
    for item in items:
        if "demo" in item.path.parts:
            item.add_marker(pytest.mark.real)
    real = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: ("demo" not in item.path.parts, item.path not in real))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A test of bytes is named by number: bytes that a packer wrote hold the second in which it ran.

    Workers that run side by side collect by themselves, and tests whose names differ end the whole run.
    """
    return argname if isinstance(val, bytes) else None


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
