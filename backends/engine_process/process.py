"""One process of an engine: how it is started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from backends.engine_process.child_end import exit_code
from backends.engine_process.log import LogRing
from backends.engine_process.log_reader import LogReader
from backends.engine_process.tree_guard import TreeGuard
from backends.machine.children import ending_with_us
from backends.machine.environment import OWNER_VARIABLE, child_environment
from backends.machine.files.folders import check_socket_path
from budget.errors import EngineTimeout, LoadFailed

KILL_LIMIT_S = 8.0
"""How long to wait for a killed process. One that hangs in a driver may never end."""
SOCKET_NAME_BYTES = 12
LOG_END_S = 0.5
"""The longest wait for the log's end after a death, because a grandchild can hold the pipe open."""


_HEAP: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
"""One heap that returns freed memory, so that an engine's bytes stay at its booking."""


def engine_socket(folder: Path, name: str = "0" * SOCKET_NAME_BYTES) -> Path:
    """The socket of an engine in a runtime folder.

    Raises:
        ConfigError: the folder's path is too long for it.
    """
    return check_socket_path(folder / f"e-{name}.sock")


def engine_environment(owner: Path, library_env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine: that of every child, settings of the heap, and its keeper's folder."""
    env = _HEAP | child_environment(library_env)
    env[OWNER_VARIABLE] = str(owner)
    return env


def program_environment(owner: Path, library_env: Mapping[str, str]) -> dict[str, str]:
    """As `engine_environment`, for a program that may bring an allocator of its own."""
    env = engine_environment(owner, library_env)
    return {name: value for name, value in env.items() if name not in _HEAP}


class Gate:
    """Holds a llama-server back while it reads its first argument, before it takes much memory.

    The argument names a file of API keys, which is a pipe. The pipe ends, without a key, when the gate
    opens. By then the program and its libraries are loaded.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    @property
    def arguments(self) -> list[str]:
        """The first arguments of the command line."""
        return ["--api-key-file", f"/proc/self/fd/{self._reader}"]

    @property
    def inherited(self) -> tuple[int, ...]:
        """The descriptor that the child reads from."""
        return (self._reader,)

    def handed_over(self) -> None:
        """Close our copy of the descriptor, because the child has its own or was never started."""
        os.close(self._reader)

    def open(self) -> None:
        """Let the child go on. Idempotent."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


class EngineProcess:
    """A child process in a group of its own, with its log in a ring.

    Start it from a thread that runs as long as the engine may, because the kernel's parent-death signal
    follows the thread that started it, not the process.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reader: LogReader, guard: TreeGuard | None = None
    ) -> None:
        self._process = process
        self._reader = reader
        self._guard = guard
        self._ended = asyncio.ensure_future(self._wait())

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        on_ready: Callable[[], None] | None = None,
        inherited: Sequence[int] = (),
        cwd: Path | None = None,
        mark: str = "",
        if_absent: str = "Install the project again; its build of llama.cpp is not complete.",
    ) -> EngineProcess:
        """Start the command under the parent-death signal, with everything it creates private.

        An event loop has to run, because it hears the log and the end.

        Args:
            argv: the command.
            env: its whole environment.
            on_ready: called when its log says that llama-server is ready.
            inherited: the descriptors that it gets beside its log.
            cwd: its working folder.
            mark: a `NAME=value` of `env`, where it may start others, which end with this process.
            if_absent: what to do where there is no such program.

        Raises:
            LoadFailed: the command cannot be executed.
        """
        reading, writing = os.pipe()
        # If the start fails, both ends of the pipe are still here, and are closed.
        reader = LogReader(reading, LogRing(on_ready))
        try:
            process = subprocess.Popen(
                [*ending_with_us(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                umask=0o077,
                process_group=0,
                pass_fds=inherited,
            )
            guard = _guarded(process, mark) if mark else None
        except OSError as exc:
            absent = exc.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC)
            hint = if_absent if absent else "See the keeper's open files, processes and memory."
            raise LoadFailed(f"{argv[0]} cannot be started: {exc.strerror}.", hint=hint) from exc
        finally:
            os.close(writing)
        return cls(process, reader, guard)

    @property
    def log(self) -> LogRing:
        """The log of the process until now."""
        return self._reader.up_to_now()

    @property
    def pid(self) -> int:
        """The process's number, which is also its group's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return the exit code as soon as the process has ended; cancelling harms nothing."""
        return await asyncio.shield(self._ended)

    async def _wait(self) -> int:
        try:
            code = await exit_code(self._process)
            try:
                await self._reader.until_end(LOG_END_S)
            finally:
                if self._guard is not None:
                    self._guard.kill_group()
        finally:
            # Its event loop may end before it does.
            self._reader.close()
        if self._guard is not None:
            await self._guard.wait()
        return code

    async def stop(self, *, grace_s: float, by: signal.Signals = signal.SIGTERM) -> int:
        """A signal (SIGTERM), and SIGKILL to the group after `grace_s` (at once when it is 0).

        Raises:
            EngineTimeout: it does not end even then, so its bytes are not free.
        """
        if self.exit_code is None and grace_s > 0:
            self._signal(by)
            await asyncio.wait({self._ended}, timeout=grace_s)
        if not self._ended.done():
            self._signal(signal.SIGKILL)
            await asyncio.wait({self._ended}, timeout=KILL_LIMIT_S)
        if not self._ended.done():
            raise EngineTimeout(
                f"process {self.pid} was killed and has not ended for {KILL_LIMIT_S:g} s: it hangs in"
                " the kernel, in a driver or on a disk that does not answer.",
                hint="Its bytes stay taken. Look at the kernel's log.",
                pid=self.pid,
            )
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the group, without waiting for its end."""
        self._signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """SIGKILL to the group when its leader may have ended; call it only while the group has members."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)


def _guarded(process: subprocess.Popen[bytes], mark: str) -> TreeGuard:
    """The guard of a process; without one the process does not run."""
    try:
        return TreeGuard(process.pid, mark)
    except OSError:
        process.kill()
        process.wait(KILL_LIMIT_S)
        raise
