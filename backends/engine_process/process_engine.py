"""The part of the engine protocol that is the same for every engine that is a process of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path

from backends.base import Death
from backends.engine_process.ceiling import Ceilings
from backends.engine_process.log import looks_out_of_memory
from backends.engine_process.orphans import end_marked
from backends.engine_process.process import SOCKET_NAME_BYTES, EngineProcess, engine_socket
from backends.machine.bounded_questions import asked
from backends.machine.files.folders import private_folder
from backends.machine.nvml import gpu_process_bytes
from backends.machine.processes import process_bytes, process_tree, pss_bytes
from budget.errors import InternalError, InvalidRequest, KeepwarmError, OutOfMemory
from budget.footprint import HOST, Placement

_DEATH_LINES = 8


def usable_cores() -> int:
    """The number of CPU cores that this process and its children may run on."""
    return len(os.sched_getaffinity(0))


def ending(code: int) -> str:
    """How a process ended, as the end of a sentence."""
    if code < 0:
        note = " (abort)" if code == -6 else ""
        return f"was ended by signal {-code}{note}"
    return f"exited with code {code}"


def gpus_of(placement: Placement) -> tuple[int, ...]:
    """The numbers of the GPUs that a placement books."""
    names = (device for device, _ in placement.bookings if device.startswith("cuda:"))
    return tuple(int(name.partition(":")[2]) for name in names)


class ProcessEngine:
    """A process on a Unix socket of mode 0600 in a private folder. It saves no KV state.

    A subclass starts it: it sets `_process`, `_ceilings` and `_gpus`.

    Args:
        model_id: the name that requests carry and answers repeat.
        runtime_dir: the keeper's private folder; made with mode 0700 when missing.
        program: what runs, in messages.
    """

    def __init__(self, model_id: str, runtime_dir: Path, program: str) -> None:
        self._model_id = model_id
        self._program = program
        self._runtime_dir = private_folder(runtime_dir)
        self._name = secrets.token_hex(SOCKET_NAME_BYTES // 2)
        self._socket = engine_socket(self._runtime_dir, self._name)
        self._process: EngineProcess | None = None
        self._ceilings = Ceilings({}, 0)
        self._gpus: tuple[int, ...] = ()
        self._mark = ""
        """A `NAME=value` in the environment of all that the engine starts, where it may start something."""
        self._stop_signal = signal.SIGTERM
        self._stopping = False
        self._started = False
        self._killed = False

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} {self._model_id} pid={self.pid} socket={self._socket.name}>"

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The engine's last log lines."""
        return self._process.log.tail if self._process else ()

    def log_since(self, seen: int) -> tuple[int, tuple[str, ...]]:
        """How many lines its log has had, and those after the first `seen` that are still kept."""
        return self._process.log.since(seen) if self._process else (0, ())

    @property
    def pid(self) -> int | None:
        """The process's number while it runs."""
        return self._process.pid if self._process else None

    @property
    def _alive(self) -> EngineProcess | None:
        """The process, if it runs."""
        process = self._process
        return process if process is not None and process.exit_code is None else None

    def _running(self) -> EngineProcess:
        if self._process is None:
            raise InternalError("the engine was not started")
        return self._process

    def _took(self, process: EngineProcess) -> None:
        """Note the process that was started; `kill` may have been called meanwhile."""
        self._process = process
        if self._killed:
            process.kill()

    # Ends

    async def wait_death(self) -> Death:
        """Return when the process has ended on its own. After `stop` it never returns, so cancel it."""
        code = await self._running().wait()
        if self._stopping:
            await asyncio.get_running_loop().create_future()
        return Death(
            message=f"{self._program} of {self._model_id} {ending(code)}",
            exit_code=code,
            log_tail=self.log_tail,
            out_of_memory=looks_out_of_memory(self._running().log.lines[-_DEATH_LINES:]),
        )

    async def stop(self, *, grace_s: float) -> None:
        """End the process (SIGTERM, then SIGKILL after `grace_s`), what it started, and its files.

        Raises:
            EngineTimeout: the process does not end.
        """
        self._stopping = True
        try:
            if self._process is not None:
                await self._process.stop(grace_s=grace_s, by=self._stop_signal)
        finally:
            if self._mark:
                with contextlib.suppress(KeepwarmError):
                    await asked(end_marked, self._mark)
            with contextlib.suppress(OSError):
                self._socket.unlink()
            self._clean_up()

    def _clean_up(self) -> None:
        """Remove what a subclass made beside the socket; its process has ended, or never began."""

    def kill(self) -> None:
        """Send SIGKILL to the process's group; no effect if none runs."""
        self._killed = True
        if self._process is not None:
            self._process.kill()

    # Bytes

    def overgrown(self, measured: Mapping[str, int | None]) -> OutOfMemory | None:
        """Compare the process's own pages now, and `measured` on other devices, with the ceilings."""
        if (process := self._alive) is None:
            return None
        held = process_bytes(process.pid)
        found = {**measured, HOST: held.own if held else None}
        return self._ceilings.exceeded(self._model_id, found, self.log_tail)

    def ceilings(self) -> Mapping[str, int]:
        """What is booked by device, and the margin."""
        return self._ceilings.by_device()

    def memory(self) -> Mapping[str, int | None]:
        """PSS of the process and its children on `host`, NVML's figure on the placement's GPUs."""
        if (process := self._alive) is None:
            return {}
        tree = process_tree(process.pid)
        found = {HOST: pss_bytes(tree)}
        found.update({f"cuda:{gpu}": gpu_process_bytes(gpu, tree) for gpu in self._gpus})
        return found

    def cached_bytes(self) -> int:
        """The share of mapped files in the PSS of the process and its children."""
        if (process := self._alive) is None:
            return 0
        return pss_bytes(process_tree(process.pid), "Pss_File") or 0

    async def sleep(self) -> Mapping[str, int] | None:
        """It does not sleep."""
        return None

    # KV state

    def keep_kv_in(self, folder: Path) -> None:
        """Nothing is kept."""

    async def kv_tokens(self) -> Mapping[int, int]:
        """No slot has tokens."""
        return {}

    async def save_kv(self, slot: int, name: str) -> int:
        """Refused."""
        raise InvalidRequest(f"{self._model_id} saves no KV state (slot {slot}, {name}).")

    async def restore_kv(self, slot: int, name: str) -> int:
        """Refused."""
        raise InvalidRequest(f"{self._model_id} restores no KV state (slot {slot}, {name}).")
