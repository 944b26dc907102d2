"""Running a long command for people: a log in a file, one line of progress, a clean end."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LINE_EVERY_S = 20.0
"""How often a line is printed where the output is no terminal."""
KILL_AFTER_S = 5.0
TAIL_LINES = 12
TAIL_WIDTH = 200
_NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\]")
_MAKE_STEP = re.compile(r"\s*\[\s*(\d+)%\]")


class SetupError(Exception):
    """A step of the set-up failed; the message is one for people."""


def say(text: str) -> None:
    """One line for people, at once."""
    print(f"[setup] {text}", flush=True)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; says so when another process has it, and waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another {what} is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LogFile:
    """The full output of every command, in one file that is started anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"")

    def append(self, line: str) -> None:
        """Add one line."""
        with self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line.rstrip("\n") + "\n")

    def tail(self) -> str:
        """The last lines, each cut to a readable width; what names an error comes first."""
        lines = [
            line.strip()[:TAIL_WIDTH]
            for line in self.path.read_text("utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)][-4:]
        last = lines[-TAIL_LINES:]
        return "\n".join(f"    {x}" for x in [*(e for e in errors if e not in last), *last])


class StepProgress:
    """How far a build is, from the lines that ninja or make print."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.steps_started: float | None = None
        self.done = 0
        self.total = 0

    def feed(self, line: str, now: float) -> None:
        """Take note of one line of output."""
        if match := _NINJA_STEP.match(line):
            done, total = int(match[1]), int(match[2])
        elif match := _MAKE_STEP.match(line):
            done, total = int(match[1]), 100
        else:
            return
        # CMake checks what the compiler can do with builds of a few steps before the real one.
        if total < 10:
            return
        if self.steps_started is None:
            self.steps_started = now
        self.done, self.total = done, total

    def remaining_seconds(self, now: float) -> float | None:
        """The estimate by the mean time of the steps so far; None before it means anything."""
        if self.steps_started is None or self.done < 3 or not self.total:
            return None
        return (now - self.steps_started) / self.done * (self.total - self.done)

    def describe(self, now: float) -> str:
        """`[n/N] elapsed, about remaining`."""
        elapsed = clock(now - self.started)
        if not self.total:
            return f"{elapsed} so far"
        left = self.remaining_seconds(now)
        estimate = f", about {clock(left)} left" if left is not None else ""
        return f"[{self.done}/{self.total}] {elapsed} so far{estimate}"


def clock(seconds: float) -> str:
    """Seconds as `m:ss`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Display:
    """One line that is rewritten on a terminal; a line now and then elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.live = sys.stdout.isatty()
        self.next_line = time.monotonic() + LINE_EVERY_S

    def show(self, progress: StepProgress) -> None:
        """Show where things stand."""
        now = time.monotonic()
        text = f"{self.what}: {progress.describe(now)}"
        if self.live:
            sys.stdout.write(f"\r\x1b[K[setup] {text}")
            sys.stdout.flush()
        elif now >= self.next_line:
            self.next_line = now + LINE_EVERY_S
            say(text)

    def close(self) -> None:
        """Leave the terminal's line clean."""
        if self.live:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


def run_logged(
    command: Sequence[str | Path],
    *,
    log: LogFile,
    what: str,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command to its end, with its output in the log and its progress on the screen.

    The command has a process group of its own, which ends with us: an interrupt leaves nothing
    running.

    Raises:
        SetupError: it failed; names the log and quotes its end.
    """
    log.append(f"$ {' '.join(map(str, command))}")
    progress = StepProgress(time.monotonic())
    display = Display(what)
    process = None
    try:
        with _signals_held():
            process = _start(command, clean_env() if env is None else dict(env))
        reader = threading.Thread(target=_read, args=(process, log, progress), daemon=True)
        reader.start()
        while process.poll() is None:
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                display.show(progress)
    except BaseException:
        if process is not None:
            end_group(process)
        raise
    finally:
        display.close()
    reader.join(timeout=KILL_AFTER_S)
    status = process.returncode
    if status != 0:
        end = "by a signal" if status < 0 else f"with status {status}"
        raise SetupError(f"{what} failed {end}; the full log is {log.path}\n{log.tail()}")


def _start(command: Sequence[str | Path], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        process_group=0,
    )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keep an interrupt until the block has ended, so that it cannot lose what is being started."""
    caught: list[int] = []
    kept = {
        number: signal.signal(number, lambda signum, _frame: caught.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt(signal.Signals(caught[0]).name)


def _read(process: subprocess.Popen[bytes], log: LogFile, progress: StepProgress) -> None:
    if process.stdout is None:
        return
    for raw in process.stdout:
        line = raw.decode("utf-8", errors="replace")
        log.append(line)
        progress.feed(line, time.monotonic())


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started: politely, then by force."""
    for sent, wait_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            continue


def clean_env(**more: str) -> dict[str, str]:
    """Our environment without what would change what pip and cmake do, and with `more`."""
    dropped = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONHOME", "PYTHONPATH", "PIP_USER"}
    dropped |= {"PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_PREFIX", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, **more}
