"""The engine of kind `server`: a program of the user's choice that answers over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.base import Capabilities, Endpoint, LoadReport, Signs
from backends.engine_process.ceiling import PlausibleCeilings
from backends.engine_process.load import Loading
from backends.engine_process.log import looks_out_of_memory
from backends.engine_process.measured_engine import MeasuredEngine
from backends.engine_process.process import EngineProcess, program_environment
from backends.engine_process.process_engine import ending
from backends.engine_process.surroundings import (
    folder_or_root,
    gpu_variables,
)
from backends.machine.bounded_questions import asked
from backends.machine.processes import (
    IoCounts,
    listening_ports,
    process_state,
    process_tree,
    sum_of_counts,
    sum_of_cpu,
)
from backends.machine.unix_http import (
    LOOPBACK,
    Address,
    answer_of,
    free_port,
    is_success,
    listens,
    status_of,
)
from backends.openai.exchange import secrets_of
from backends.server.command import ServerSpec, filled
from budget.errors import EngineTimeout, InternalError, KeepwarmError, LoadFailed, OutOfMemory
from budget.footprint import Placement

PATIENCE: Final = 10.0
"""How many times longer a load that computes may take, as a Python worker's."""
LOAD_STALLS: Final = 60.0
"""A load of so many stall time-outs is given up, whatever its log says: a program can wait for ever."""
END_S: Final = 5.0
"""How long a server that is asked to end by its `stop_signal` may take."""
_QUICK_S: Final = 2.0
_ASK_S: Final = 0.05
"""Between two attempts to connect while it loads; one that is refused costs it nothing."""
_MARK: Final = "KEEPWARM_SERVER"
_LINES: Final = 6
_QUOTED: Final = 200
_LOADS: Final = (0, 503)
"""No answer, and the status by which a server says that it is not ready yet."""


class ServerEngine(MeasuredEngine[ServerSpec]):
    """A server."""

    _called = "the server"

    def _set_up(self) -> None:
        self._said_ready = asyncio.Event()
        # Lines of a log mask what begins like this.
        self._key = f"sk-{secrets.token_hex(24)}"
        self._key_file = self._runtime_dir / f"e-{self._name}.key"
        self._port = 0
        self._listens = False
        self._refusal = (0, b"")
        self._refuses_since = ((0, 0, 0), 0.0)
        self._began_s = 0.0
        self._mark = f"{_MARK}={self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """What the configuration says that it can do."""
        chats = "chat" in self._spec.can
        return Capabilities(
            chat=chats,
            embeddings="embed" in self._spec.can,
            rerank="rerank" in self._spec.can,
            json_schema=chats,
            tools=chats,
            load_progress=True,
        )

    @property
    def endpoint(self) -> Endpoint:
        """Its port, with the file of its key; or its socket."""
        on_port = self._spec.by_port
        return Endpoint(
            base_url=f"http://{LOOPBACK}:{self._port}" if on_port else "http://engine",
            model_id=self._spec.served,
            backend="server",
            socket_path=None if on_port else str(self._socket),
            key_file=str(self._key_file),
            capabilities=self.capabilities,
        )

    @property
    def _address(self) -> Address:
        return self._port if self._spec.by_port else self._socket

    # Start

    async def prepare(self, placement: Placement) -> None:
        """Choose its port. Its process is not started ahead, because it takes its bytes when it likes."""
        if self._port:
            raise InternalError("an engine starts once; make a new one to start again")
        self._expect(placement)
        self._port = free_port()

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Run the command, and return when it is ready.

        Raises:
            LoadFailed: it cannot be run, it ended, or it answers elsewhere; `OutOfMemory` when its log
                says that bytes were refused.
            EngineTimeout: it did not get ready.
        """
        if self._started:
            raise InternalError("an engine starts once; make a new one to start again")
        self._started = True
        if not self._port:
            await self.prepare(placement)

        async def load(file_bytes: int) -> IoCounts:
            self._took(await self._spawn())
            counts = await self._load(file_bytes or placement.total_bytes, on_progress)
            if not self._spec.by_port:
                self._socket.chmod(0o600)
            return counts

        return await self._loaded(self._spec.files, load, self._first_measure)

    async def _spawn(self) -> EngineProcess:
        spec = self._spec
        values = {
            "port": str(self._port),
            "socket": str(self._socket),
            "key_file": str(self._key_file),
            "model": str(spec.files[0]) if spec.files else "",
            "name": spec.served,
        }
        env = program_environment(self._runtime_dir, await gpu_variables(self._gpus))
        with_key = {**values, "key": self._key}
        env.update({name: filled(text, with_key) for name, text in spec.env.items()})
        env[_MARK.partition("=")[0]] = self._name
        cwd = await asked(folder_or_root, spec.cwd)
        program, *arguments = (filled(text, values) for text in spec.command)
        await asked(self._write_key)
        self._began_s = time.monotonic()
        return EngineProcess.spawn(
            [await asked(self._found, program, cwd, env.get("PATH", "")), *arguments],
            env,
            on_ready=self._said_ready.set,
            cwd=cwd,
            mark=self._mark,
            if_absent=f"Look at [models.{self._model_id}] command.",
        )

    def _write_key(self) -> None:
        fd = os.open(self._key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, f"{self._key}\n".encode())
        finally:
            os.close(fd)

    def _found(self, program: str, cwd: Path, path: str) -> str:
        """The program's own path: what starts it would only say that there is no such file."""
        written = str(cwd / program) if "/" in program else program
        if (found := shutil.which(written, path=path)) is None:
            where = "no program can be run there" if "/" in program else "it is not on PATH"
            raise LoadFailed(
                f"{self._model_id} did not load: {program} cannot be started: {where}.",
                hint=f"Look at [models.{self._model_id}] command.",
                model=self._model_id,
                command=program,
            )
        return found

    async def _load(self, size: int, on_progress: Callable[[float], None]) -> IoCounts:
        loading = Loading(
            self._running(),
            f"{self._model_id} ({self._spec.command[0]})",
            self._model_id,
            size,
            self._stall_s,
            PlausibleCeilings({}, 0) if self._guessed else self._ceilings,
            self._said_ready,
            self._ready,
            self._load_error,
            PATIENCE,
            whole=True,
            ask_s=_ASK_S,
        )
        try:
            return await loading.until_ready(on_progress)
        except EngineTimeout as slow:
            slow.message = f"{slow.message.rstrip('.')}; {await self._seen()}."
            raise

    async def _ready(self) -> bool:
        """Whether it is ready for requests.

        Raises:
            LoadFailed: it is ready at another port.
            EngineTimeout: it has taken longer than any load may.
        """
        limit_s = self._stall_s * LOAD_STALLS
        if time.monotonic() - self._began_s > limit_s:
            raise EngineTimeout(
                f"{self._model_id} was not ready within {limit_s:g} s: {await self._seen()}.",
                hint="See `ready` of the model, and its last lines in `log_tail`.",
                log_tail=list(self.log_tail),
            )
        if not self._listens:
            if not await listens(self._address, _QUICK_S):
                await self._must_not_be_elsewhere()
                return False
            # Another program may have taken the port meanwhile; requests and the key are not for that.
            self._listens = not self._spec.by_port or self._port in await self._ports()
        if not self._listens:
            return False
        if await self.healthy():
            return True
        self._must_not_refuse()
        return False

    def _must_not_refuse(self) -> None:
        """End a load whose `ready` path answers an error for a stall time-out, without reading or growing.

        503 says that it loads, which may take longer while it computes. What it does to answer the
        question, and the line that it logs for it, are no progress.

        Raises:
            LoadFailed: with the status and the body.
        """
        status, body = self._refusal
        counts = sum_of_counts(process_tree(self._running().pid))
        moved = status, counts.disk_bytes, counts.rss_bytes >> 20
        now_s = time.monotonic()
        if (
            status in _LOADS
            or moved > self._refuses_since[0]
            or status != self._refuses_since[0][0]
        ):
            self._refuses_since = moved, now_s
        if now_s - self._refuses_since[1] <= self._stall_s:
            return
        raise LoadFailed(
            f"{self._model_id} did not load: for {self._stall_s:g} s its server has {self._answered()}.",
            hint="Look at `ready` of the model, and at its last lines in `log_tail`.",
            model=self._model_id,
            status=status,
            body=self._quoted(body),
            log_tail=list(self.log_tail),
        )

    def _answered(self) -> str:
        status, body = self._refusal
        said = self._quoted(body)
        return f"answered {self._spec.ready} with {status}" + (f": {said}" if said else "")

    def _quoted(self, body: bytes) -> str:
        return secrets_of(self.endpoint).quote(body, _QUOTED).rstrip(".")

    async def _ports(self) -> set[int]:
        return await asked(lambda: listening_ports(process_tree(self._running().pid)))

    async def _must_not_be_elsewhere(self) -> None:
        """Servers listen on further ports while they load. One that is ready there will not come here."""
        ready = self._spec.ready
        if ready is None or not self._spec.by_port or not self._said_ready.is_set():
            return
        for port in sorted(await self._ports() - {self._port}):
            if is_success(await status_of(port, ready, self._key, _QUICK_S)):
                raise LoadFailed(
                    f"{self._model_id} did not load: its server answers {ready} at port {port}, and was"
                    f" given port {self._port}.",
                    hint="Put {port} where its command takes the port.",
                    model=self._model_id,
                    port=port,
                    log_tail=list(self.log_tail),
                )

    async def _seen(self) -> str:
        """How far it came, in words."""
        if self._listens:
            last = f" (it {self._answered()})" if self._refusal[0] else ""
            return f"it listens, and {self._spec.ready} does not answer 2xx{last}"
        ports = sorted(await self._ports()) if self._alive else []
        listed = ", ".join(map(str, ports))
        told = f"on the port that it was given ({self._port})" if self._spec.by_port else "yet"
        return f"it does not listen {told}" + (f", but on {listed}" if ports else "")

    async def healthy(self) -> bool:
        """Whether its `ready` path answers 2xx now, or whether it listens, where it has none."""
        if self._alive is None:
            return False
        if self._spec.ready is None:
            return await listens(self._address, _QUICK_S)
        answer = await answer_of(self._address, self._spec.ready, self._key, _QUICK_S)
        self._refusal = answer or (0, b"")
        return is_success(self._refusal[0])

    async def _load_error(self, code: int) -> KeepwarmError:
        tail = self.log_tail
        made = OutOfMemory if looks_out_of_memory(tail) else LoadFailed
        return made(
            f"{self._model_id} did not load: {self._spec.command[0]} {ending(code)} before it was ready."
            + "".join(f"\n  | {line}" for line in tail[-_LINES:]),
            hint="It has to stay in the foreground. Its last lines are in `log_tail`.",
            model=self._model_id,
            exit_code=code,
            log_tail=list(tail),
        )

    # End

    async def stop(self, *, grace_s: float) -> None:
        """End it and all that it started: by its `stop_signal`, where it has one, and then by force.

        Raises:
            EngineTimeout: the process does not end.
        """
        if self._spec.stop_signal is not None:
            self._stop_signal = self._spec.stop_signal
            grace_s = 0.0 if self._killed else max(grace_s, END_S)
        await super().stop(grace_s=grace_s)

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            self._key_file.unlink()

    # Watching

    async def signs(self, *, ask: bool) -> Signs | None:
        """Signs of life from the kernel's counters and, if asked, from the server.

        How many requests it works on is not known. It is well while it answers; one that works and
        answers nothing meanwhile computes.
        """
        process = self._alive
        state = process_state(process.pid) if process is not None else None
        if process is None or state is None:
            return None
        limit_s = min(_QUICK_S, self._stall_s / 4)
        connects = not ask or state.stopped or await listens(self._address, limit_s)
        well = ask and connects and not state.stopped and await self._answers(limit_s)
        tree = process_tree(process.pid)
        return Signs(
            reachable=connects and (self._spec.by_port or self._socket.exists()),
            stopped=state.stopped,
            # What it uses without a request says nothing.
            cpu_s=sum_of_cpu(tree) if ask else None,
            disk_bytes=sum_of_counts(tree).disk_bytes,
            elsewhere=bool(self._gpus),
            answers=connects,
            well=well,
        )

    async def _answers(self, limit_s: float) -> bool:
        path = self._spec.ready
        return path is None or await status_of(self._address, path, self._key, limit_s) is not None
