"""The llama.cpp engine: one managed llama-server process per loaded model."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from backends.base import Capabilities, Endpoint, LoadReport, Signs, SlotSigns
from backends.engine_process.ceiling import DEFAULT_MARGIN_BYTES, Ceilings
from backends.engine_process.load import Loading
from backends.engine_process.process import EngineProcess, Gate, engine_environment
from backends.engine_process.process_engine import ProcessEngine, gpus_of, usable_cores
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.llama.chat_template import ChatTemplate, chat_template
from backends.llama.log_facts import buffer_bytes
from backends.llama.model_files import ModelFiles
from backends.llama.older_builds import fitted
from backends.llama.rpc.device_names import DeviceNames, names_of
from backends.llama.slots import Slots, slot_signs
from backends.llama.start_failures import load_error
from backends.machine.bounded_questions import asked
from backends.machine.gpus import launch_facts
from backends.machine.processes import IoCounts, io_counts, process_state
from backends.machine.unix_http import control_request
from budget.errors import EndpointError, InternalError, KeepwarmError
from budget.footprint import EngineArgs, Placement

LOG = logging.getLogger("keepwarm.keeper")
_HEALTH_LIMIT_S = 2.0
_MARK = "KEEPWARM_LLAMA_SERVER"


class LlamaServerEngine(ProcessEngine):
    """A llama-server process, or a program that answers like it (`_command`).

    Args:
        model_path: the GGUF file (the first shard of several).
        model_id: the name that requests carry and answers repeat.
        runtime_dir: the keeper's private folder; made with mode 0700 when missing.
        threads: CPU threads; by default all that this process may use.
        stall_s: a load that neither reads, grows nor logs for so long is given up.
        margin_bytes: the bytes that it may take beyond its booking (`Ceilings`); 0 means no bound.
        pooling: pooling of an embedding engine; None keeps the model's own.
        carries_kv: whether restored KV state saves it work (`budget.eviction.kv_store.carries_kv`).
        server: another llama-server than the one that is found; it may be older.
    """

    program: ClassVar[str] = "llama-server"
    """What runs, in messages."""

    def __init__(
        self,
        model_path: Path,
        model_id: str,
        runtime_dir: Path,
        *,
        threads: int | None = None,
        stall_s: float = 60.0,
        margin_bytes: int = DEFAULT_MARGIN_BYTES,
        pooling: str | None = None,
        carries_kv: bool = True,
        server: Path | None = None,
    ) -> None:
        super().__init__(model_id, runtime_dir, self.program)
        self._model_path = model_path
        self._slot_folder = self._runtime_dir / f"e-{self._name}.slots"
        self._keeps_kv = False
        self._carries_kv = carries_kv
        self._server = server
        # A script of the user's may start it as a child.
        self._mark = f"{_MARK}={self._name}" if server is not None else ""
        self._threads = threads or usable_cores()
        self._stall_s = stall_s
        self._margin_bytes = margin_bytes
        self._pooling = pooling
        self._gate: Gate | None = None
        self._said_ready = asyncio.Event()
        self._args: EngineArgs | None = None
        self._template = ChatTemplate()

    @property
    def capabilities(self) -> Capabilities:
        """The engine's features. An engine that embeds, or reranks, does nothing else."""
        embeds = self._args is not None and self._args.embeddings
        ranks = self._args is not None and "--reranking" in self._args.extra
        return Capabilities(
            chat=not embeds,
            embeddings=embeds and not ranks,
            rerank=ranks,
            grammar=True,
            json_schema=True,
            tools=True,
            save_restore=not embeds and self._carries_kv,
            load_progress=True,
            own_template=self._template.own,
            tools_in_template=self._template.has_tools,
        )

    @property
    def endpoint(self) -> Endpoint:
        """The engine's socket."""
        args = self._args
        # A context that shifts drops the start of what is too long.
        bounded = args is not None and "--context-shift" not in args.extra
        context = args.context_per_slot if args is not None and bounded else None
        return Endpoint.of_engine(
            self._model_id,
            self._socket,
            self.capabilities,
            context_per_slot=context,
            slots=args.slots if args is not None else 1,
        )

    async def prepare(self, placement: Placement) -> None:
        """Start the process, and hold it before it takes memory; `start` lets it load.

        Raises:
            LoadFailed: llama-server cannot be executed, or a driver does not answer.
            ConfigError: the arguments cannot be honoured.
        """
        if self._args is not None:
            raise InternalError("an engine starts once; make a new one to start again")
        self._args = placement.args
        if not self._keeps_kv:
            self._slot_folder.mkdir(mode=0o700)
        settings = LaunchSettings(
            model_path=self._model_path,
            model_id=self._model_id,
            socket_path=self._socket,
            slot_folder=self._slot_folder,
            threads=self._threads,
            threads_batch=self._threads,
            pooling=self._pooling,
        )
        command, rest, library_variables = await self._command(placement.args, settings)
        env = engine_environment(self._runtime_dir, library_variables)
        env_of_gpus, gpu_here = await asked(launch_facts, placement.args.devices)
        env.update({**env_of_gpus, _MARK: self._name})
        self._gate = gate = Gate()
        try:
            process = EngineProcess.spawn(
                [*command, *gate.arguments, *rest],
                env,
                on_ready=self._said_ready.set,
                inherited=gate.inherited,
                mark=self._mark,
            )
        finally:
            gate.handed_over()
        self._took(process)
        self._ceilings = Ceilings.of(placement, self._margin_bytes)
        if not gpu_here:
            self._ceilings.bound_load(process.pid, placement.args, self._threads)

    async def _command(
        self, args: EngineArgs, settings: LaunchSettings
    ) -> tuple[list[str], list[str], Mapping[str, str]]:
        """The command, its arguments after those of the gate, and what its environment needs.

        Raises:
            ConfigError: there is no such program, or the arguments cannot be honoured.
        """
        binary = self._server or find_binary("llama-server")
        command, *own = server_argv(binary, args, settings)
        rest, left_out = await asked(fitted, binary, own, args.extra)
        if left_out:
            LOG.info("%s: %s knows no %s", self._model_id, binary, ", ".join(left_out))
        return [command], rest, library_env(binary)

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Load the model exactly as placed.

        Raises:
            LoadFailed: llama-server ended or refused; `OutOfMemory` when a device refused bytes.
            EngineTimeout: the load stalled.
            ConfigError: the arguments cannot be honoured.
        """
        if self._started:
            raise InternalError("an engine starts once; make a new one to start again")
        self._started = True
        if self._args not in (None, placement.args):
            raise InternalError(f"{self!r} was prepared for another placement")
        self._gpus = gpus_of(placement)
        files = await asked(ModelFiles.look, self._model_path)
        started_ns = time.monotonic_ns()
        try:
            counts = await self._load(placement, files.total_bytes, on_progress)
            self._socket.chmod(0o600)
            if not placement.args.embeddings:
                self._template = await chat_template(self._socket, placement.args.extra)
        except BaseException:
            await asyncio.shield(self.stop(grace_s=0.0))
            raise
        if not self._gpus:
            self._ceilings.bound_growth(self._running().pid)
        return self._report(started_ns, files, counts)

    def _report(self, started_ns: int, files: ModelFiles, counts: IoCounts) -> LoadReport:
        process = self._running()
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage=files.storage(counts.disk_bytes),
            file_bytes=files.total_bytes,
            read_bytes=counts.disk_bytes,
            buffers=buffer_bytes(
                process.log.buffer_lines, names_of(self._args) if self._args else DeviceNames()
            ),
            pid=process.pid,
            phases=dict(process.log.marks),
        )

    async def _load(
        self, placement: Placement, file_bytes: int, on_progress: Callable[[float], None]
    ) -> IoCounts:
        if self._gate is None:
            await self.prepare(placement)
        if self._gate is not None:
            self._gate.open()
        process = self._running()
        loading = Loading(
            process,
            self._model_path.name,
            self._model_id,
            file_bytes,
            self._stall_s,
            self._ceilings,
            self._said_ready,
            self.healthy,
            self._load_error,
        )
        return await loading.until_ready(on_progress)

    async def _load_error(self, code: int) -> KeepwarmError:
        log = self._running().log
        return await load_error(
            self._model_path, code, log.lines, log.tail, self._args, self.program
        )

    async def stop(self, *, grace_s: float) -> None:
        """End the process (SIGTERM, then SIGKILL after `grace_s`) and remove its files.

        Raises:
            EngineTimeout: the process does not end.
        """
        try:
            await super().stop(grace_s=grace_s)
        finally:
            if self._gate is not None:
                self._gate.open()

    def _clean_up(self) -> None:
        if not self._keeps_kv:
            with suppress(OSError):
                self._slot_folder.rmdir()  # an empty one needs no descriptor, of which none may be left
            shutil.rmtree(self._slot_folder, ignore_errors=True)

    async def healthy(self) -> bool:
        """Whether `/health` answers 200 now."""
        return await self._health(_HEALTH_LIMIT_S)

    @property
    def _quick_s(self) -> float:
        """The bound of a question for signs of life."""
        return min(_HEALTH_LIMIT_S, self._stall_s / 4)

    async def _health(self, limit_s: float) -> bool:
        if self._process is None or self._process.exit_code is not None:
            return False
        try:
            status, _ = await control_request(self._socket, "GET", "/health", timeout_s=limit_s)
        except (OSError, EndpointError):
            return False
        return status == 200

    async def signs(self, *, ask: bool) -> Signs | None:
        """Signs of life from the kernel's counters and, if asked, from `/slots` and `/health`."""
        state = process_state(self._process.pid) if self._process is not None else None
        if self._process is None or state is None or self._process.exit_code is not None:
            return None
        ask = ask and not state.stopped
        slots, listens = await self._slot_signs() if ask else (None, True)
        return Signs(
            reachable=listens and self._socket.exists(),
            stopped=state.stopped,
            cpu_s=state.cpu_s,
            disk_bytes=io_counts(self._process.pid).disk_bytes,
            elsewhere=bool(self._args and self._args.rpc),
            slots=slots,
            answers=slots is not None or (ask and listens and await self._health(self._quick_s)),
        )

    async def _slot_signs(self) -> tuple[SlotSigns | None, bool]:
        """The state of its slots, and whether any process listens at its socket."""
        try:
            return slot_signs(await self._slots().rows(self._quick_s)), True
        except KeepwarmError as error:
            refused = isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
            return None, not refused

    def keep_kv_in(self, folder: Path) -> None:
        """Save KV state in a folder that stays after the engine's end."""
        self._slot_folder, self._keeps_kv = folder, True

    async def kv_tokens(self) -> Mapping[int, int]:
        """The number of tokens in each slot that served since the start."""
        return await self._slots().tokens()

    async def save_kv(self, slot: int, name: str) -> int:
        """Save a slot's KV state under a name; returns the bytes written."""
        return await self._slots().save(slot, name)

    async def restore_kv(self, slot: int, name: str) -> int:
        """Restore a slot that `save_kv` saved; returns the number of restored tokens."""
        return await self._slots().restore(slot, name)

    def _slots(self) -> Slots:
        able = self.capabilities.save_restore
        return Slots(self._socket, self._model_id, self._stall_s, carries_kv=able)
