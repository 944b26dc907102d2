"""The engine of kind `vllm`: an API server with its engine and workers, in one process group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.base import Capabilities, Endpoint, LoadReport, Signs
from backends.engine_process.load import Loading
from backends.engine_process.measured_engine import MeasuredEngine
from backends.engine_process.process import EngineProcess, program_environment
from backends.engine_process.surroundings import gpu_variables
from backends.machine.bounded_questions import asked
from backends.machine.devices import find_device
from backends.machine.files.shared_memory import remove_segments, segments_of
from backends.machine.processes import (
    IoCounts,
    group_members,
    process_state,
    process_tree,
    sum_of_counts,
    sum_of_cpu,
)
from backends.machine.unix_http import control_answer
from backends.vllm.load_errors import load_error
from backends.vllm.program import VllmProgram, find_program
from backends.vllm.server_arguments import ServerSettings, server_command, server_variables
from backends.vllm.signs import slot_signs
from backends.vllm.sleep import fall_asleep, wake
from budget.errors import EndpointError, EngineTimeout, InternalError, LoadFailed, OutOfMemory
from budget.footprint import HOST, Placement

LOG = logging.getLogger("keepwarm.keeper")

PATIENCE: Final = 10.0
"""A load compiles and captures graphs for minutes without a line in its log."""
END_LIMIT_S: Final = 5.0
"""Until the processes of a killed group are gone."""
_QUICK_S: Final = 2.0
_MARK: Final = "KEEPWARM_VLLM"


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """What a server serves, and how.

    Attributes:
        model: the model's folder.
        files: the files that a load reads.
        python: the interpreter of vLLM's environment; None looks for one.
        env: further environment variables.
        threads: CPU threads; None leaves them alone.
        sleep: the level of sleep by which it leaves its GPU; 0 ends its processes.
    """

    model: Path
    files: tuple[Path, ...]
    python: str | None = None
    env: Mapping[str, str] | None = None
    threads: int | None = None
    sleep: int = 0


class VllmEngine(MeasuredEngine[VllmSpec]):
    """A vLLM server."""

    _called = "vLLM"
    _files_hint = "Check the model's path."

    def _set_up(self) -> None:
        self._embeds = False
        self._main = HOST
        self._vllm: VllmProgram | None = None
        self._said_ready = asyncio.Event()
        self._segments: set[str] = set()
        self._asleep = False
        self._weights_bytes = 0
        self._mark = f"{_MARK}={self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """It chats or embeds; it knows no GBNF grammars."""
        return Capabilities(
            chat=not self._embeds,
            embeddings=self._embeds,
            rerank=self._embeds,
            json_schema=not self._embeds,
            tools=not self._embeds,
            load_progress=True,
        )

    @property
    def endpoint(self) -> Endpoint:
        """The server's socket."""
        return Endpoint.of_engine(self._model_id, self._socket, self.capabilities, "vllm")

    # Start

    async def prepare(self, placement: Placement) -> None:
        """Find vLLM. Its process is not started ahead, because it takes its bytes when it likes.

        Raises:
            LoadFailed: there is no vLLM.
        """
        if self._vllm is not None:
            raise InternalError("an engine starts once; make a new one to start again")
        self._embeds = placement.args.embeddings
        self._main = placement.main_device
        self._weights_bytes = placement.footprints[self._main].weights_bytes
        self._expect(placement)
        self._vllm = await asked(find_program, self._spec.python)

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Start the server with what is booked for it.

        Raises:
            LoadFailed: it ended; `OutOfMemory` when a device refused bytes.
            EngineTimeout: the load stalled.
            ConfigError: this version lacks a flag that is needed.
        """
        if self._asleep:
            return await self._woken(placement, on_progress)
        if self._started:
            raise InternalError("an engine starts once; make a new one to start again")
        self._started = True
        return await self._begun(placement, on_progress)

    async def _begun(
        self, placement: Placement, on_progress: Callable[[float], None]
    ) -> LoadReport:
        if self._vllm is None:
            await self.prepare(placement)

        async def load(file_bytes: int) -> IoCounts:
            self._took(await self._spawn(placement))
            counts = await self._load(file_bytes, on_progress)
            self._socket.chmod(0o600)
            self._note_segments()
            return counts

        # What it has reserved: it reports nothing, and takes no more later.
        return await self._loaded(self._spec.files, load, self._measured)

    async def _spawn(self, placement: Placement) -> EngineProcess:
        program = self._vllm
        assert program is not None
        device = await asked(find_device, self._main)
        settings = ServerSettings(
            self._spec.model,
            self._model_id,
            self._socket,
            device.total_bytes,
            self._spec.threads,
            sleeps=self._spec.sleep > 0,
        )
        variables = server_variables(program, placement, settings)
        env = program_environment(self._runtime_dir, await gpu_variables(self._gpus))
        env.update(variables | dict(self._spec.env or {}) | {_MARK: self._name})
        return EngineProcess.spawn(
            server_command(program, placement, settings),
            env,
            on_ready=self._said_ready.set,
            mark=self._mark,
            if_absent=f"Look at [models.{self._model_id}] python.",
        )

    async def _load(self, file_bytes: int, on_progress: Callable[[float], None]) -> IoCounts:
        loading = Loading(
            self._running(),
            f"{self._model_id} ({self._spec.model.name})",
            self._model_id,
            file_bytes,
            self._stall_s,
            self._ceilings,
            self._said_ready,
            self.healthy,
            self._load_error,
            PATIENCE,
            whole=True,
        )
        return await loading.until_ready(on_progress)

    async def _load_error(self, code: int) -> LoadFailed:
        log = self._running().log
        return load_error(self._model_id, code, log.lines, log.tail, self._main)

    async def healthy(self) -> bool:
        """Whether `/health` answers 200 now; also while it sleeps."""
        return self._alive is not None and await self._answer("/health", _QUICK_S) is not None

    async def _answer(self, target: str, limit_s: float) -> bytes | None:
        """The body of an answer of status 200; None for any other end."""
        try:
            status, body = await control_answer(self._socket, "GET", target, timeout_s=limit_s)
        except (OSError, EndpointError):
            return None
        return body if status == 200 else None

    # Sleep

    async def sleep(self) -> Mapping[str, int] | None:
        """Leave the GPU, where the model's `sleep` says so; on the host nothing would be freed.

        Raises:
            OSError, EndpointError: it does not fall asleep.
        """
        return await self.fall_asleep() if self._gpus and self._spec.sleep else None

    async def fall_asleep(self) -> Mapping[str, int]:
        """Fall asleep; returns what is held meanwhile.

        Raises:
            OSError, EndpointError: it does not.
        """
        before = await self._measured()
        await fall_asleep(self._socket, self._spec.sleep)
        self._asleep = True
        held = await self._measured()
        if self._spec.sleep == 1:
            # Pages that a GPU's driver holds for it are not among a process's own.
            held[HOST] = max(held.get(HOST, 0), before.get(HOST, 0) + self._weights_bytes)
        return held

    async def _woken(
        self, placement: Placement, on_progress: Callable[[float], None]
    ) -> LoadReport:
        """Wake up; a server that does not is ended, and started anew."""
        started_ns, self._asleep = time.monotonic_ns(), False
        try:
            await wake(self._socket, self._spec.sleep, on_progress)
        except (OSError, EndpointError) as error:
            LOG.warning("%s does not wake up, and is started anew: %s", self._model_id, error)
            await super().stop(grace_s=0.0)
            await self._end_rest()
            self._stopping, self._said_ready = False, asyncio.Event()
            return await self._begun(placement, on_progress)
        on_progress(1.0)
        read = self._weights_bytes if self._spec.sleep == 2 else 0
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage="staged",
            file_bytes=self._weights_bytes,
            read_bytes=read,
            buffers=await self._measured(),
            pid=self.pid,
        )

    # End

    def _note_segments(self) -> None:
        """Remember its shared memory while its processes are there: one that is killed leaves it."""
        if (process := self._process) is not None:
            self._segments |= segments_of(group_members(process.pid))

    async def stop(self, *, grace_s: float) -> None:
        """End the whole group, and remove its socket and its shared memory.

        Raises:
            EngineTimeout: the processes do not end.
        """
        self._note_segments()
        try:
            await super().stop(grace_s=grace_s)
        finally:
            await self._end_rest()
            remove_segments(self._segments)

    async def _end_rest(self) -> None:
        """Kill what its server left behind: engine and workers outlive an API process that was killed."""
        process = self._process
        if process is None:
            return
        until_s = time.monotonic() + END_LIMIT_S
        while rest := group_members(process.pid):
            process.kill_group()
            if time.monotonic() > until_s:
                raise EngineTimeout(
                    f"{self._model_id}: processes {rest} were killed and have not ended for"
                    f" {END_LIMIT_S:g} s.",
                    hint="Their bytes stay taken. Look at the kernel's log.",
                    pid=rest[0],
                )
            await asyncio.sleep(0.01)

    # Watching

    async def signs(self, *, ask: bool) -> Signs | None:
        """Signs of life from the kernel's counters and, if asked, from `/metrics`."""
        process = self._alive
        state = process_state(process.pid) if process is not None else None
        if process is None or state is None:
            return None
        limit_s = min(_QUICK_S, self._stall_s / 4)
        metrics = await self._answer("/metrics", limit_s) if ask and not state.stopped else None
        slots = slot_signs(metrics) if metrics is not None else None
        answers = metrics is not None or not ask or await self.healthy()
        tree = process_tree(process.pid)
        # Its processes wait for work by looking: what they use without a request says nothing.
        works = ask and (slots is None or slots.busy > 0)
        return Signs(
            reachable=self._socket.exists(),
            stopped=state.stopped,
            cpu_s=sum_of_cpu(tree) if works else None,
            disk_bytes=sum_of_counts(tree).disk_bytes,
            elsewhere=bool(self._gpus),
            slots=slots,
            answers=answers,
        )

    def overgrown(self, measured: Mapping[str, int | None]) -> OutOfMemory | None:
        """Compare what was measured of all its processes with the ceilings."""
        if self._alive is None or not measured:
            return None
        return self._ceilings.exceeded(self._model_id, measured, self.log_tail)
