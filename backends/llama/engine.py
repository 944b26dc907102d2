"""The llama.cpp engine: one managed llama-server process per loaded model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from backends.base import Capabilities, Death, Endpoint, LoadReport
from backends.gpus import gpu_environment
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.llama.control import control_request
from backends.llama.failures import ending, load_error, stalled
from backends.llama.log import looks_out_of_memory
from backends.llama.memory import file_pss_bytes, process_tree, pss_bytes
from backends.llama.names import DeviceNames, names_of
from backends.llama.process import (
    Gate,
    ServerProcess,
    check_socket_path,
    engine_environment,
    private_folder,
)
from backends.llama.progress import IoCounts, LoadProgress, io_counts
from backends.llama.slots import Slots
from backends.nvml import gpu_process_bytes
from backends.page_cache import resident_fraction
from budget.errors import (
    EndpointError,
    InternalError,
    LoadFailed,
)
from budget.footprint import HOST, EngineArgs, Placement

_LOOK_S = 0.02
"""Between two looks at a load's progress."""
_ASK_S = 1.0
"""Between two questions for its health while its log does not say that it is ready."""
_ASK_AGAIN_S = 0.005
_STAGED_FRACTION = 0.9
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def model_files(model_path: Path) -> list[Path]:
    """The file itself, or all shards when it is the first of several (`-00001-of-0000N.gguf`)."""
    hit = _SHARD.search(model_path.name)
    if hit is None:
        return [model_path]
    stem, total = model_path.name[: hit.start()], int(hit.group(2))
    return [model_path.with_name(f"{stem}-{i + 1:05d}-of-{total:05d}.gguf") for i in range(total)]


def usable_cores() -> int:
    """The CPU cores that this process, and what it starts, may run on."""
    return len(os.sched_getaffinity(0))


class LlamaServerEngine:
    """A llama-server process on a Unix socket of mode 0600 in a private folder.

    Args:
        model_path: the GGUF file (the first shard of several).
        model_id: the name that requests carry and answers repeat.
        runtime_dir: the keeper's private folder; made with mode 0700 when missing.
        threads: CPU threads; by default all that this process may use.
        stall_s: a load that neither reads, grows nor logs for so long is given up.
        pooling: pooling of an embedding engine; None keeps the model's own.
        carries_kv: whether restored KV state spares it anything (`budget.kv_store.carries_kv`).
    """

    def __init__(
        self,
        model_path: Path,
        model_id: str,
        runtime_dir: Path,
        *,
        threads: int | None = None,
        stall_s: float = 60.0,
        pooling: str | None = None,
        carries_kv: bool = True,
    ) -> None:
        self._model_path = model_path
        self._runtime_dir = private_folder(runtime_dir)
        name = f"e-{secrets.token_hex(6)}"
        self._socket = check_socket_path(self._runtime_dir / f"{name}.sock")
        self._slot_folder = self._runtime_dir / f"{name}.slots"
        self._keeps_kv = False
        self._carries_kv = carries_kv
        self._model_id = model_id
        self._threads = threads or usable_cores()
        self._stall_s = stall_s
        self._pooling = pooling
        self._process: ServerProcess | None = None
        self._gate: Gate | None = None
        self._said_ready = asyncio.Event()
        self._args: EngineArgs | None = None
        self._gpus: tuple[int, ...] = ()
        self._stopping = False
        self._started = False

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"<LlamaServerEngine {self._model_id} pid={pid} socket={self._socket.name}>"

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can honour; an embedding engine does not chat."""
        embeds = self._args is not None and self._args.embeddings
        return Capabilities(
            chat=not embeds,
            embeddings=embeds,
            grammar=True,
            json_schema=True,
            tools=True,
            save_restore=not embeds and self._carries_kv,
            load_progress=True,
        )

    @property
    def endpoint(self) -> Endpoint:
        """The engine's socket."""
        return Endpoint.of_engine(self._model_id, self._socket, self.capabilities)

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The engine's last log lines."""
        return self._process.log.tail if self._process else ()

    @property
    def pid(self) -> int | None:
        """The process's number while it runs."""
        return self._process.pid if self._process else None

    async def prepare(self, placement: Placement) -> None:
        """Start the process and hold it where it has taken next to nothing; `start` lets it load.

        Raises:
            LoadFailed: llama-server cannot be executed.
            ConfigError: the arguments cannot be honoured.
        """
        if self._args is not None:
            raise InternalError("an engine lives once; make a new one to start again")
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
        binary = find_binary("llama-server")
        command, *rest = server_argv(binary, placement.args, settings)
        env = engine_environment(self._runtime_dir, library_env(binary))
        env.update(await asyncio.to_thread(gpu_environment, placement.args.devices))
        self._gate = gate = Gate()
        try:
            self._process = await ServerProcess.spawn(
                [command, *gate.arguments, *rest],
                env,
                on_ready=self._said_ready.set,
                inherited=gate.inherited,
            )
        finally:
            gate.handed_over()

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Load the model exactly as placed.

        Raises:
            LoadFailed: llama-server ended or refused; `OutOfMemory` when a device refused bytes.
            EngineTimeout: the load stalled.
            ConfigError: the arguments cannot be honoured.
        """
        if self._started:
            raise InternalError("an engine lives once; make a new one to start again")
        self._started = True
        if self._args not in (None, placement.args):
            raise InternalError(f"{self!r} was prepared for another placement")
        self._gpus = tuple(
            int(d.partition(":")[2]) for d, _ in placement.bookings if d.startswith("cuda:")
        )
        files = self._sizes()
        cached = await asyncio.to_thread(_cached_fraction, files)
        started_ns = time.monotonic_ns()
        try:
            counts = await self._load(placement, sum(files.values()), on_progress)
            self._socket.chmod(0o600)
        except BaseException:
            await asyncio.shield(self.stop(grace_s=0.0))
            raise
        return self._report(started_ns, files, cached, counts)

    def _sizes(self) -> dict[Path, int]:
        try:
            return {path: path.stat().st_size for path in model_files(self._model_path)}
        except OSError as exc:
            raise LoadFailed(
                f"{exc.filename} cannot be read: {exc.strerror}.",
                hint="Check the model's path.",
                file=str(exc.filename),
            ) from exc

    def _report(
        self, started_ns: int, files: Mapping[Path, int], cached: float, counts: IoCounts
    ) -> LoadReport:
        process = self._running()
        total = sum(files.values())
        from_disk = counts.disk_bytes > (1 - _STAGED_FRACTION) * total
        storage: Literal["cold", "staged"] = (
            "cold" if from_disk or cached < _STAGED_FRACTION else "staged"
        )
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage=storage,
            file_bytes=total,
            read_bytes=counts.disk_bytes,
            buffers=process.log.buffers(names_of(self._args) if self._args else DeviceNames()),
            pid=process.pid,
        )

    async def _load(
        self, placement: Placement, file_bytes: int, on_progress: Callable[[float], None]
    ) -> IoCounts:
        if self._gate is None:
            await self.prepare(placement)
        if self._gate is not None:
            self._gate.open()
        return await self._until_ready(file_bytes, on_progress)

    async def _until_ready(self, file_bytes: int, on_progress: Callable[[float], None]) -> IoCounts:
        process = self._running()
        progress = LoadProgress(file_bytes, time.monotonic())
        ask_at_s = time.monotonic() + _ASK_S
        ended = asyncio.ensure_future(process.wait())
        ready = asyncio.ensure_future(self._said_ready.wait())
        try:
            while True:
                watched = {ended} if ready.done() else {ended, ready}
                pause_s = _ASK_AGAIN_S if ready.done() else _LOOK_S
                await asyncio.wait(watched, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise await self._load_error(ended.result())
                now_s = time.monotonic()
                # Asking costs both sides time that the load could have.
                if ready.done() or now_s >= ask_at_s:
                    if await self.healthy():
                        on_progress(1.0)
                        return io_counts(process.pid)
                    ask_at_s = now_s + _ASK_S
                progress.look(io_counts(process.pid), process.log.lines_seen, now_s)
                on_progress(progress.fraction)
                if progress.stalled_for_s(now_s) > self._stall_s:
                    raise stalled(self._model_path, progress.fraction, self._stall_s, self.log_tail)
        finally:
            ended.cancel()
            ready.cancel()

    async def _load_error(self, code: int) -> LoadFailed:
        process = self._running()
        return await load_error(
            self._model_path, code, process.log.lines, self.log_tail, self._args
        )

    async def wait_death(self) -> Death:
        """Return when the process has ended on its own; after `stop` it never returns: cancel it."""
        code = await self._running().wait()
        if self._stopping:
            await asyncio.get_running_loop().create_future()
        lines = self._running().log.lines
        return Death(
            message=f"llama-server of {self._model_id} {ending(code)}",
            exit_code=code,
            log_tail=self.log_tail,
            out_of_memory=looks_out_of_memory(lines[-8:]),
        )

    async def stop(self, *, grace_s: float) -> None:
        """End the process (SIGTERM, then SIGKILL after `grace_s`) and remove its files."""
        self._stopping = True
        if self._process is not None:
            await self._process.stop(grace_s=grace_s)
        if self._gate is not None:
            self._gate.open()
        with contextlib.suppress(OSError):
            self._socket.unlink()
        if not self._keeps_kv:
            shutil.rmtree(self._slot_folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to the process's group; nothing where none runs."""
        if self._process is not None:
            self._process.kill()

    async def healthy(self) -> bool:
        """Whether `/health` answers 200 now."""
        if self._process is None or self._process.exit_code is not None:
            return False
        try:
            status, _ = await control_request(self._socket, "GET", "/health", timeout_s=2.0)
        except (OSError, EndpointError):
            return False
        return status == 200

    def memory(self) -> Mapping[str, int | None]:
        """PSS of the process and its children on `host`, NVML's figure on the placement's GPUs."""
        if self._process is None or self._process.exit_code is not None:
            return {}
        tree = process_tree(self._process.pid)
        found = {HOST: pss_bytes(tree)}
        found.update({f"cuda:{gpu}": gpu_process_bytes(gpu, tree) for gpu in self._gpus})
        return found

    def cached_bytes(self) -> int:
        """The share of mapped files in the PSS of the process and its children."""
        if self._process is None or self._process.exit_code is not None:
            return 0
        return file_pss_bytes(process_tree(self._process.pid))

    def keep_kv_in(self, folder: Path) -> None:
        """Save KV state in a folder that outlives the engine."""
        self._slot_folder, self._keeps_kv = folder, True

    async def kv_tokens(self) -> Mapping[int, int]:
        """The tokens that each slot holds, of the slots that served since the start."""
        return await self._slots().tokens()

    async def save_kv(self, slot: int, name: str) -> int:
        """Save a slot's KV state under a name; returns the bytes written."""
        return await self._slots().save(slot, name)

    async def restore_kv(self, slot: int, name: str) -> int:
        """Restore what `save_kv` saved; returns the tokens restored."""
        return await self._slots().restore(slot, name)

    async def is_generating(self) -> bool:
        """Whether any slot is processing a request now."""
        return await self._slots().busy()

    def _slots(self) -> Slots:
        able = self.capabilities.save_restore
        return Slots(self._socket, self._model_id, self._stall_s, carries_kv=able)

    def _running(self) -> ServerProcess:
        if self._process is None:
            raise InternalError("the engine was not started")
        return self._process


def _cached_fraction(files: Mapping[Path, int]) -> float:
    total = sum(files.values())
    if total == 0:
        return 1.0
    return sum(resident_fraction(path) * size for path, size in files.items()) / total
