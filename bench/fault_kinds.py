"""What goes wrong in the fault campaign, one function a kind.

Each says whether it was done, and repairs the files and limits that it broke before it returns.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

from backends.engine_process.orphans import leftovers
from shim.paths import keeper_socket


class Scene(Protocol):
    """What the faults are done to."""

    chance: random.Random
    runtime: Path
    models: dict[str, Path]

    def keeper_pid(self) -> int | None:
        """The keeper's process, where one runs."""
        ...

    def callers(self) -> list[subprocess.Popen[str]]:
        """The calling programs."""
        ...

    def configure(self) -> None:
        """Write another configuration."""
        ...

    def keepwarm(self, *args: str) -> None:
        """Run a command of an operator."""
        ...


def _engine(scene: Scene) -> int | None:
    pids = leftovers(scene.runtime)
    return scene.chance.choice(pids) if pids else None


def _signal(pid: int | None, number: int) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _freeze(pid: int | None, seconds: float) -> bool:
    if not _signal(pid, signal.SIGSTOP):
        return False
    time.sleep(seconds)
    return _signal(pid, signal.SIGCONT)


def engine_killed(scene: Scene) -> bool:
    """SIGKILL of an engine."""
    return _signal(_engine(scene), signal.SIGKILL)


def engine_aborted(scene: Scene) -> bool:
    """SIGABRT of an engine, as an assertion in ggml does."""
    return _signal(_engine(scene), signal.SIGABRT)


def engine_stopped(scene: Scene) -> bool:
    """SIGSTOP of an engine, for good."""
    return _signal(_engine(scene), signal.SIGSTOP)


def engine_frozen(scene: Scene) -> bool:
    """An engine that stands still for a moment."""
    return _freeze(_engine(scene), 0.5)


def engine_socket_removed(scene: Scene) -> bool:
    """The socket file of an engine is deleted."""
    found = sorted(scene.runtime.glob("e-*.sock"))
    if not found:
        return False
    scene.chance.choice(found).unlink(missing_ok=True)
    return True


def keeper_killed(scene: Scene) -> bool:
    """SIGKILL of the keeper."""
    return _signal(scene.keeper_pid(), signal.SIGKILL)


def keeper_ended(scene: Scene) -> bool:
    """SIGTERM of the keeper."""
    return _signal(scene.keeper_pid(), signal.SIGTERM)


def keeper_frozen(scene: Scene) -> bool:
    """A keeper that stands still for a moment."""
    return _freeze(scene.keeper_pid(), scene.chance.choice((0.5, 2.0)))


def keeper_stopped(scene: Scene) -> bool:
    """A keeper that stands still for longer than its clients wait, and is killed then."""
    pid = scene.keeper_pid()
    if not _signal(pid, signal.SIGSTOP):
        return False
    time.sleep(11.0)
    return _signal(pid, signal.SIGKILL)


def keeper_socket_removed(scene: Scene) -> bool:
    """The keeper's socket file is deleted."""
    keeper_socket(scene.runtime).unlink(missing_ok=True)
    return True


def runtime_folder_removed(scene: Scene) -> bool:
    """A cleaner removes the whole runtime folder."""
    shutil.rmtree(scene.runtime, ignore_errors=True)
    return True


def caller_killed(scene: Scene) -> bool:
    """SIGKILL of a calling program."""
    alive = [caller.pid for caller in scene.callers() if caller.poll() is None]
    return _signal(scene.chance.choice(alive) if alive else None, signal.SIGKILL)


def caller_frozen(scene: Scene) -> bool:
    """A calling program that stands still for a moment."""
    alive = [caller.pid for caller in scene.callers() if caller.poll() is None]
    return _freeze(scene.chance.choice(alive) if alive else None, 1.0)


@contextlib.contextmanager
def _model(scene: Scene) -> Iterator[Path]:
    """One model's file, whole again afterwards."""
    path = scene.models[scene.chance.choice(sorted(scene.models))]
    whole = path.read_bytes()
    try:
        yield path
        time.sleep(scene.chance.random() * 0.5)
    finally:
        new = path.with_suffix(".new")
        new.write_bytes(whole)
        new.replace(path)


def model_touched(scene: Scene) -> bool:
    """A model file gets another time."""
    path = scene.models[scene.chance.choice(sorted(scene.models))]
    os.utime(path)
    return True


def model_truncated(scene: Scene) -> bool:
    """A model file is cut, in its header or in its tensors."""
    with _model(scene) as path:
        os.truncate(path, int(path.stat().st_size * scene.chance.choice((0.0, 0.001, 0.5, 0.99))))
    return True


def model_deleted(scene: Scene) -> bool:
    """A model file is not there for a moment."""
    with _model(scene) as path:
        path.unlink()
    return True


def model_replaced(scene: Scene) -> bool:
    """Another model takes the place of one, at once."""
    with _model(scene) as path:
        other = scene.chance.choice(sorted(scene.models.values()))
        new = path.with_suffix(".new")
        new.write_bytes(other.read_bytes())
        new.replace(path)
    return True


def model_garbled(scene: Scene) -> bool:
    """A model file holds noise."""
    with _model(scene) as path:
        path.write_bytes(scene.chance.randbytes(10_000))
    return True


def configuration_reloaded(scene: Scene) -> bool:
    """An edit of the configuration, taken over by a running keeper."""
    scene.configure()
    scene.keepwarm("config", "reload")
    return True


def model_unloaded(scene: Scene) -> bool:
    """An operator unloads a model."""
    scene.keepwarm("unload", scene.chance.choice(("a", "b", "c")))
    return True


def disk_full(scene: Scene) -> bool:
    """No file of the keeper's, nor of the engines that it starts, can grow."""
    return _limited(scene, resource.RLIMIT_FSIZE, 0)


def descriptors_gone(scene: Scene) -> bool:
    """The keeper can open no more files or connections."""
    pid = scene.keeper_pid()
    with contextlib.suppress(psutil.Error, OSError, TypeError):
        return _limited(scene, resource.RLIMIT_NOFILE, psutil.Process(pid).num_fds())
    return False


def _limited(scene: Scene, what: int, soft: int) -> bool:
    pid = scene.keeper_pid()
    if pid is None:
        return False
    try:
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (soft, before[1]))
        time.sleep(1.0)
        resource.prlimit(pid, what, before)
    except OSError:
        return False
    return True


def connection_garbled(scene: Scene) -> bool:
    """Noise and half messages on the keeper's socket, from many connections."""
    opened: list[socket.socket] = []
    try:
        for _ in range(50):
            sock = socket.socket(socket.AF_UNIX)
            opened.append(sock)
            sock.settimeout(1.0)
            sock.connect(str(keeper_socket(scene.runtime)))
            noise = scene.chance.randbytes(200) + b"\n"
            sock.sendall(scene.chance.choice((noise, b'{"op":"lease","id":NaN}\n', b'{"op":"le')))
    except OSError:
        return False
    finally:
        for sock in opened:
            sock.close()
    return True


KINDS: tuple[Callable[[Scene], bool], ...] = (
    engine_killed,
    engine_aborted,
    engine_stopped,
    engine_frozen,
    engine_socket_removed,
    keeper_killed,
    keeper_ended,
    keeper_frozen,
    keeper_stopped,
    keeper_socket_removed,
    runtime_folder_removed,
    caller_killed,
    caller_frozen,
    model_touched,
    model_truncated,
    model_deleted,
    model_replaced,
    model_garbled,
    configuration_reloaded,
    model_unloaded,
    disk_full,
    descriptors_gone,
    connection_garbled,
)
LONG: tuple[Callable[[Scene], bool], ...] = (keeper_stopped, engine_stopped, runtime_folder_removed)
"""Kinds that clients wait for by seconds, until a bound is reached."""
