"""Faults of processes: engines, the keeper and callers are killed, stopped, interrupted; clocks step.

Each function says whether its fault was done, and has put right what lasts when it returns.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import time

import psutil

from campaign.place import Place
from shim.paths import keeper_socket


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


def engine_killed(place: Place) -> bool:
    """SIGKILL of an engine."""
    return _signal(place.an_engine(), signal.SIGKILL)


def engine_aborted(place: Place) -> bool:
    """SIGABRT of an engine, as an assertion in ggml does."""
    return _signal(place.an_engine(), signal.SIGABRT)


def engine_crashed(place: Place) -> bool:
    """SIGSEGV of an engine."""
    return _signal(place.an_engine(), signal.SIGSEGV)


def engine_asked_to_end(place: Place) -> bool:
    """SIGTERM of an engine by another program."""
    return _signal(place.an_engine(), signal.SIGTERM)


def engine_stopped(place: Place) -> bool:
    """SIGSTOP of an engine, for good."""
    pid = place.an_engine()
    if pid is None or not _signal(pid, signal.SIGSTOP):
        return False
    place.stopped.add(pid)
    return True


def engine_frozen(place: Place) -> bool:
    """An engine that stands still for a moment."""
    return _freeze(place.an_engine(), 0.5)


def engine_socket_removed(place: Place) -> bool:
    """The socket file of an engine is deleted."""
    found = sorted(place.runtime.glob("e-*.sock"))
    if not found:
        return False
    place.chance.choice(found).unlink(missing_ok=True)
    return True


def keeper_killed(place: Place) -> bool:
    """SIGKILL of the keeper."""
    return _signal(place.keeper_pid(), signal.SIGKILL)


def keeper_ended(place: Place) -> bool:
    """SIGTERM of the keeper."""
    return _signal(place.keeper_pid(), signal.SIGTERM)


def keeper_frozen(place: Place) -> bool:
    """A keeper that stands still for a moment."""
    return _freeze(place.keeper_pid(), place.chance.choice((0.5, 2.0)))


def keeper_stopped(place: Place) -> bool:
    """A keeper that stands still for longer than its clients wait, and is killed then."""
    pid = place.keeper_pid()
    if not _signal(pid, signal.SIGSTOP):
        return False
    time.sleep(11.0)
    return _signal(pid, signal.SIGKILL)


def keeper_socket_removed(place: Place) -> bool:
    """The keeper's socket file is deleted."""
    keeper_socket(place.runtime).unlink(missing_ok=True)
    return True


def keeper_path_taken(place: Place) -> bool:
    """Another program's socket, or a folder, lies where the keeper listens."""
    path = keeper_socket(place.runtime)
    path.unlink(missing_ok=True)
    try:
        if place.chance.random() < 0.5:
            path.mkdir()
            time.sleep(1.0)
            return True
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            time.sleep(1.0)
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else None


def runtime_folder_removed(place: Place) -> bool:
    """A cleaner removes the whole runtime folder."""
    shutil.rmtree(place.runtime, ignore_errors=True)
    return True


def caller_killed(place: Place) -> bool:
    """SIGKILL of a calling program."""
    caller = place.a_caller()
    return caller is not None and _signal(caller.pid, signal.SIGKILL)


def caller_frozen(place: Place) -> bool:
    """A calling program that stands still for a moment."""
    caller = place.a_caller()
    return caller is not None and _freeze(caller.pid, 1.0)


def caller_cancelled(place: Place) -> bool:
    """A caller's handler of a signal raises in the middle of its call, or its tasks are cancelled."""
    caller = place.a_caller(without="threads")
    return caller is not None and _signal(caller.pid, signal.SIGUSR2)


def caller_forked(place: Place) -> bool:
    """A caller forks in the middle of its calls; the child collects its garbage and leaves."""
    caller = place.a_caller()
    return caller is not None and _signal(caller.pid, signal.SIGHUP)


def clock_stepped(place: Place) -> bool:
    """The wall clock of all Python processes steps by hours, and back later."""
    clock = place.root / "clock"
    clock.write_text(str(place.chance.choice((-86400.0, -3600.0, 3600.0, 86400.0))))
    time.sleep(place.chance.random())
    clock.write_text("0")
    return True


def configuration_reloaded(place: Place) -> bool:
    """An edit of the configuration, taken over by a running keeper."""
    place.configure()
    place.keepwarm("config", "reload")
    return True


def model_unloaded(place: Place) -> bool:
    """An operator unloads a model."""
    place.unload(place.chance.choice(("a", "b", "c", "w", "s")))
    return True


def descriptors_gone(place: Place) -> bool:
    """The keeper can open no more files or connections."""
    pid = place.keeper_pid()
    with contextlib.suppress(psutil.Error, OSError):
        return pid is not None and limited(
            pid, resource.RLIMIT_NOFILE, psutil.Process(pid).num_fds()
        )
    return False


def keeper_out_of_memory(place: Place) -> bool:
    """The keeper, and what it starts, gets hardly any memory more."""
    pid = place.keeper_pid()
    with contextlib.suppress(psutil.Error):
        if pid is not None and keeper_socket(place.runtime).exists():
            size = psutil.Process(pid).memory_info().vms + (1 << 20)
            return limited(pid, resource.RLIMIT_AS, size)
    return False


def limited(pid: int | None, what: int, soft: int, seconds: float = 1.0) -> bool:
    """Lower a limit of a process for a while."""
    if pid is None:
        return False
    try:
        before = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (soft, before[1]))
    except OSError:
        return False
    time.sleep(seconds)
    with contextlib.suppress(OSError):
        resource.prlimit(pid, what, before)
    return True


def connection_garbled(place: Place) -> bool:
    """Noise and half messages on the keeper's socket, from many connections."""
    opened: list[socket.socket] = []
    try:
        for _ in range(50):
            sock = socket.socket(socket.AF_UNIX)
            opened.append(sock)
            sock.settimeout(1.0)
            sock.connect(str(keeper_socket(place.runtime)))
            noise = place.chance.randbytes(200) + b"\n"
            sock.sendall(place.chance.choice((noise, b'{"op":"lease","id":NaN}\n', b'{"op":"le')))
    except OSError:
        return False
    finally:
        for sock in opened:
            sock.close()
    return True


def engine_slowed(place: Place) -> bool:
    """An engine gets a tenth of its processor time for a while."""
    pid = place.an_engine()
    for _ in range(20):
        if not _freeze(pid, 0.045):
            return False
        time.sleep(0.005)
    return True
