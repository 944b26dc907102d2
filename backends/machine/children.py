"""Programs that run for a moment, to be asked one thing or to serve: bounded, and ended as a group."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from budget.errors import MeasurementFailed

OUTPUT_LIMIT_BYTES: Final = 16 << 20
"""The most bytes of a program's standard output: a thousand times what any real one writes."""
LOG_KEPT_BYTES: Final = 1 << 16
"""The end of its standard error that is kept."""

START_LIMIT_S: Final = 60.0
"""Until a server is ready."""

_File = IO[bytes] | int
_TAIL_LINES: Final = 8
_READY_POLL_S: Final = 0.002
_PIECE_BYTES: Final = 1 << 16
_LOOK_EVERY_S: Final = 0.1
_END_LIMIT_S: Final = 2.0
_ASK_LIMIT_S: Final = 5.0
_SETPRIV_OPTIONS: Final = ("--pdeathsig", "KILL", "--")
_SET_AND_RUN: Final = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{sys.argv[1]} cannot be started: {error.strerror}")
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """The output of a program. `code` is its exit status, negative for a signal.

    `cut` says why it was ended from here: it took too much time, or said too much.
    """

    code: int
    out: str
    log: str
    cut: Literal["", "time", "output"] = ""


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready: its process, and the seconds from its start until then."""

    pid: int
    ready_s: float


def ask_child(
    command: Sequence[str], env: Mapping[str, str], timeout_s: float, *, given: bytes = b""
) -> Answered:
    """Run a program in a process group of its own until it ends, or has to be ended.

    It ends with this process, and what it has started ends with it.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        timeout_s: how long it may take.
        given: its standard input.

    Raises:
        MeasurementFailed: it cannot be started.
    """
    until_s = time.monotonic() + timeout_s
    # A file takes any number of bytes at once, where a pipe would wait for the reader. It lies in memory,
    # because a system may have no folder for temporary files that can be written.
    with _typed_failure(command[0]), os.fdopen(os.memfd_create("given"), "w+b") as given_file:
        given_file.write(given)
        given_file.seek(0)
        process = _started(command, env, given_file, subprocess.PIPE, subprocess.PIPE)
    try:
        out, log, cut = _heard(process, until_s)
    finally:
        _end(process)
    return Answered(process.returncode or 0, _text(out), _text(log), cut)


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    is_ready: Callable[[], bool],
    limit_s: float = START_LIMIT_S,
) -> Iterator[Serving]:
    """Run a server while the block runs: started, waited for until it is ready, and ended.

    It ends with this process, and what it has started ends with it.

    Args:
        command: the program and its arguments.
        env: its whole environment.
        log: a file that gets all that it says.
        is_ready: asks whether it serves; never raises.
        limit_s: how long it may take until it does.

    Raises:
        MeasurementFailed: it cannot be started, ended, or is not ready in time. Facts: `log_tail`.
    """
    with _typed_failure(command[0]), log.open("wb") as output:
        started_s = time.monotonic()
        process = _started(command, env, subprocess.DEVNULL, output, output)
    try:
        while not is_ready():
            if _has_ended(process) or time.monotonic() - started_s > limit_s:
                raise _not_ready(command[0], process, log, limit_s)
            time.sleep(_READY_POLL_S)
        yield Serving(process.pid, time.monotonic() - started_s)
    finally:
        _end(process)


def _not_ready(
    program: str, process: subprocess.Popen[bytes], log: Path, limit_s: float
) -> MeasurementFailed:
    how = "ended before it was ready" if _has_ended(process) else f"not ready within {limit_s:g} s"
    tail = log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
    return MeasurementFailed(
        f"{Path(program).name} {how}.",
        hint="Its last lines are in `log_tail`.",
        log_tail=list(tail),
    )


def _started(
    command: Sequence[str], env: Mapping[str, str], stdin: _File, stdout: _File, stderr: _File
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*ending_with_us(), *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=dict(env),
        process_group=0,
    )


@contextlib.contextmanager
def _typed_failure(program: str) -> Iterator[None]:
    """Inside, a program is started."""
    try:
        yield
    except OSError as error:
        raise MeasurementFailed(
            f"{program} cannot be started: {error.strerror}.",
            hint="Install the project again, or check the limits of this user and the space in "
            "the folder for temporary files.",
        ) from error


def ending_with_us() -> list[str]:
    """The command prefix by which a program ends with the thread that started it.

    It is util-linux's `setpriv`, or this interpreter where that is missing or knows no `--pdeathsig` (that
    of busybox, and of util-linux before 2.33).
    """
    setpriv = shutil.which("setpriv")
    if setpriv is not None and _sets_death_signals(setpriv):
        return [setpriv, *_SETPRIV_OPTIONS]
    return [sys.executable, "-I", "-S", "-c", _SET_AND_RUN]


@functools.cache
def _sets_death_signals(setpriv: str) -> bool:
    """Whether this `setpriv` knows the option; it is asked once."""
    try:
        asked = subprocess.run(
            [setpriv, *_SETPRIV_OPTIONS, shutil.which("true") or sys.executable, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_ASK_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _heard(
    process: subprocess.Popen[bytes], until_s: float
) -> tuple[bytearray, bytearray, Literal["", "time", "output"]]:
    """Its output and the end of its log, until it ends or passes a bound."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, log = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, log)
        while selector.get_map():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return out, log, "time"
            ready = selector.select(min(left_s, _LOOK_EVERY_S))
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE_BYTES)
                if not piece:
                    selector.unregister(key.fileobj)
                key.data.extend(piece)
            del log[:-LOG_KEPT_BYTES]
            if len(out) > OUTPUT_LIMIT_BYTES:
                return out, log, "output"
            # What it has started may hold its pipes open for ever.
            if not ready and _has_ended(process):
                break
    _wait_until(process, until_s)
    return out, log, "" if _has_ended(process) else "time"


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has; its exit status is left for later, so that its number stays its own."""
    looked = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, looked) is not None


def _wait_until(process: subprocess.Popen[bytes], until_s: float) -> None:
    pause_s = 0.001
    while not _has_ended(process) and time.monotonic() < until_s:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_EVERY_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End its group, and let it go."""
    # Before it is waited for, its number can be no other group's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    # One that hangs in a disk's driver ends when that lets it; it is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_LIMIT_S)


def _text(data: bytearray) -> str:
    return data.decode(errors="replace")
