"""The engine of kind `python`: a user's own model in a worker process, in an interpreter of its choice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.base import Capabilities, Endpoint, LoadReport, Signs, SlotSigns
from backends.engine_process.ceiling import PlausibleCeilings
from backends.engine_process.load import Loading
from backends.engine_process.measured_engine import MeasuredEngine
from backends.engine_process.process import EngineProcess, engine_environment
from backends.engine_process.process_engine import ending
from backends.engine_process.surroundings import (
    folder_or_root,
    gpu_variables,
)
from backends.machine.bounded_questions import asked
from backends.machine.processes import IoCounts, io_counts, process_state
from backends.python.control import Control
from backends.python.links import LoopLink
from backends.python.ready_made import READY_MADE
from budget.errors import InternalError, KeepwarmError, LoadFailed, OutOfMemory
from budget.footprint import Placement

WORKER: Final = Path(__file__).with_name("worker.py")
CLOSE_S: Final = 2.0
"""How long a model's own `close` may take when it is evicted."""
PATIENCE: Final = 10.0
_QUICK_S: Final = 2.0
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MARK: Final = "KEEPWARM_WORKER"
_OUT_OF_MEMORY: Final = frozenset({"MemoryError", "OutOfMemoryError", "CudaError"})


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker makes, and where.

    Attributes:
        factory: `module:Name`, or the name of a ready-made one.
        options: the factory's arguments, JSON values.
        cwd: the working folder, which is first on the path of modules.
        python: the interpreter; None for the keeper's own.
        files: the files that it reads, where they are known.
        env: further environment variables.
        threads: CPU threads of numerical libraries; None leaves them alone.
    """

    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cwd: Path = Path("/")
    python: str | None = None
    files: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None

    def order(self, socket_path: Path, slots: int) -> dict[str, Any]:
        """The order to load, as the worker reads it."""
        module, _, name = self.factory.partition(":")
        file = ""
        if self.factory in READY_MADE:
            path, name = READY_MADE[self.factory]
            file = str(path)
        return {
            "file": file,
            "module": module,
            "name": name,
            "options": dict(self.options),
            "cwd": str(self.cwd),
            "socket": str(socket_path),
            "slots": slots,
        }

    def environment(self) -> dict[str, str]:
        """The variables that the model's configuration asks for."""
        threads = dict.fromkeys(_THREAD_VARIABLES, str(self.threads)) if self.threads else {}
        return {**threads, **self.env}


class PythonEngine(MeasuredEngine[WorkerSpec]):
    """A Python worker."""

    _called = "the Python worker"

    def _set_up(self) -> None:
        self._control: Control | None = None
        self._slots = 1
        self._mark = f"{_MARK}={self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """It is called, and does nothing else."""
        return Capabilities(
            chat=False, json_schema=False, tools=False, load_progress=True, call=True
        )

    @property
    def endpoint(self) -> Endpoint:
        """The worker's socket."""
        return Endpoint.of_engine(self._model_id, self._socket, self.capabilities, "python")

    # Start

    async def prepare(self, placement: Placement) -> None:
        """Start the interpreter; it waits for the order to load.

        Raises:
            LoadFailed: it cannot be started.
        """
        if self._control is not None:
            raise InternalError("an engine starts once; make a new one to start again")
        self._expect(placement)
        python = self._spec.python or sys.executable
        env = engine_environment(self._runtime_dir, await gpu_variables(self._gpus))
        env.update({"PYTHONUNBUFFERED": "1", _MARK: self._name})
        env.update(self._spec.environment())
        ours, theirs = socket.socketpair()
        self._control = Control(ours)
        try:
            process = EngineProcess.spawn(
                [python, "-u", str(WORKER), str(theirs.fileno())],
                env,
                inherited=(theirs.fileno(),),
                cwd=await asked(folder_or_root, self._spec.cwd),
                mark=self._mark,
                if_absent=f"Look at [models.{self._model_id}] python.",
            )
        finally:
            theirs.close()
        self._took(process)

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Make the user's object.

        Raises:
            LoadFailed: the factory is not there, raised, or the process ended; `OutOfMemory` when it
                says so.
            EngineTimeout: the load stalled.
        """
        if self._started:
            raise InternalError("an engine starts once; make a new one to start again")
        self._started = True
        self._slots = placement.args.slots

        async def load(file_bytes: int) -> IoCounts:
            counts = await self._load(placement, file_bytes, on_progress)
            self._socket.chmod(0o600)
            # From now on its log is read with pauses, however much its code prints.
            self._running().log.said_ready = True
            return counts

        return await self._loaded(self._spec.files, load, self._first_measure)

    async def _load(
        self, placement: Placement, file_bytes: int, on_progress: Callable[[float], None]
    ) -> IoCounts:
        if self._control is None:
            await self.prepare(placement)
        assert self._control is not None
        self._control.send(self._spec.order(self._socket, self._slots))
        loading = Loading(
            self._running(),
            f"{self._model_id} ({self._spec.factory})",
            self._model_id,
            file_bytes or placement.total_bytes,
            self._stall_s,
            PlausibleCeilings({}, 0) if self._guessed else self._ceilings,
            self._control.said,
            self.healthy,
            self._load_error,
            PATIENCE,
        )
        return await loading.until_ready(on_progress)

    async def healthy(self) -> bool:
        """Whether it has loaded and runs.

        Raises:
            LoadFailed: it could not be made.
        """
        state = self._control.state if self._control else {}
        if state.get("state") == "failed":
            raise self._failed(state)
        return state.get("state") == "ready" and self._alive is not None

    async def _load_error(self, code: int) -> KeepwarmError:
        state = self._control.state if self._control else {}
        if state.get("state") == "failed":
            return self._failed(state)
        tail = self.log_tail
        return LoadFailed(
            f"{self._model_id} did not load: its Python worker {ending(code)}."
            + "".join(f"\n  | {line}" for line in tail[-6:]),
            hint="Its last lines are in `log_tail`.",
            model=self._model_id,
            exit_code=code,
            log_tail=list(tail),
        )

    def _failed(self, state: Mapping[str, Any]) -> LoadFailed:
        kind, message = str(state.get("type")), str(state.get("message"))
        made = OutOfMemory if kind in _OUT_OF_MEMORY else LoadFailed
        return made(
            f"{self._model_id} did not load: {self._spec.factory} raised {kind}: {message}",
            hint="The traceback is in `traceback`, and in the engine's log.",
            model=self._model_id,
            type=kind,
            traceback=str(state.get("traceback", "")),
            log_tail=list(self.log_tail),
        )

    # End

    async def stop(self, *, grace_s: float) -> None:
        """Let it finish what it does and call its `close`, for a moment; then end it, and its children.

        Raises:
            EngineTimeout: the process does not end.
        """
        self._stopping = True
        process, control = self._alive, self._control
        if control is not None:
            control.close()
        closes = control is not None and bool(control.state.get("closes"))
        wait_s = max(grace_s, CLOSE_S if closes else 0.0)
        if process is not None and wait_s > 0 and not self._killed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await process.wait()
        await super().stop(grace_s=0.0)

    # Watching

    async def signs(self, *, ask: bool) -> Signs | None:
        """Signs of life from the kernel's counters and, if asked, from the worker."""
        process = self._alive
        state = process_state(process.pid) if process is not None else None
        if process is None or state is None:
            return None
        slots, connects = None, True
        if ask and not state.stopped:
            slots, connects = await self._slot_signs()
        return Signs(
            reachable=self._socket.exists(),
            stopped=state.stopped,
            cpu_s=state.cpu_s,
            disk_bytes=io_counts(process.pid).disk_bytes,
            # A GPU may compute for minutes while the process waits for it.
            elsewhere=bool(self._gpus),
            slots=slots,
            answers=slots is not None or connects,
        )

    async def _slot_signs(self) -> tuple[SlotSigns | None, bool]:
        """The state of its slots, and whether its socket can be connected to.

        User code that holds the interpreter's lock keeps the worker from answering, not from computing.
        """
        link = None
        try:
            async with asyncio.timeout(min(_QUICK_S, self._stall_s / 4)):
                link = await LoopLink.connect(str(self._socket))
                said = await link.ask("signs", {})
            busy, moved = said["busy"], said["moved"]
            count = sum(map(bool, busy))
            return SlotSigns(count, count > 0, tuple((int(n),) for n in moved)), True
        except (OSError, ValueError, KeyError, TypeError, TimeoutError):
            return None, link is not None
        finally:
            if link is not None:
                link.close()
