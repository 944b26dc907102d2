"""The engine protocol: the interface of every engine to the rest of keepwarm.

An engine has two planes. Its lifecycle (start, stop, health, memory, saved KV state) belongs to the
keeper; its data plane (chat, embed) is reached by callers directly, at the `Endpoint` that the engine
announces, through `backends.openai`. Engines declare their differences in `Capabilities`, so no code
asks `isinstance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from backends.kinds import Backend
from budget.errors import EngineDied, KeepwarmError, OutOfMemory
from budget.footprint import Placement


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The features of an engine. A request that asks for more is refused, never silently changed.

    Two of them say how the engine reads messages, and replies warn of them: `own_template` says whether
    the model has a chat template of its own, and `tools_in_template` whether that has a place for tools.
    """

    chat: bool = True
    embeddings: bool = False
    grammar: bool = False
    json_schema: bool = True
    tools: bool = True
    save_restore: bool = False
    load_progress: bool = False
    own_template: bool = True
    tools_in_template: bool = True
    call: bool = False
    rerank: bool = False


def shown_url(url: str) -> str:
    """A URL without its possibly secret parts: user information, query, fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model's requests go. Crosses the keeper's socket as JSON, so it holds no secret.

    `socket_path` is set for an engine on a Unix socket; `base_url` then only fills the Host header.
    `base_url` ends before `/v1`. `api_key_env` names the environment variable that holds the key. `ca_file`
    is a file of certificates that count beside the usual ones. `key_file` holds the key of a server that
    keepwarm runs. `context_per_slot` are the tokens that a prompt may have at most, where they are known.
    `keep_alive_s` is what Ollama is told. `slots` are the requests that an engine of llama.cpp works on at
    once. `called` is the model that a request asked for, where its engine knows it by another name.
    """

    base_url: str
    model_id: str
    backend: Backend
    socket_path: str | None = None
    api_key_env: str | None = None
    ca_file: str | None = None
    context_per_slot: int | None = None
    capabilities: Capabilities = Capabilities()
    key_file: str | None = None
    keep_alive_s: float | None = None
    slots: int = 1
    called: str = ""

    @classmethod
    def of_engine(
        cls,
        model_id: str,
        socket: Path,
        capabilities: Capabilities,
        backend: Backend = "llama.cpp",
        context_per_slot: int | None = None,
        slots: int = 1,
    ) -> Endpoint:
        """The endpoint of an engine that keepwarm runs, on its Unix socket."""
        return cls(
            base_url="http://engine",
            model_id=model_id,
            backend=backend,
            socket_path=str(socket),
            capabilities=capabilities,
            context_per_slot=context_per_slot,
            slots=slots,
        )

    @property
    def is_ours(self) -> bool:
        """Whether keepwarm runs what answers there."""
        return self.socket_path is not None or self.key_file is not None

    @property
    def is_known(self) -> bool:
        """Whether it is a program of ours whose answers and whose fields of requests are known."""
        return self.is_ours and self.backend != "server"

    @property
    def name(self) -> str:
        """The model in words."""
        return self.called or self.model_id

    @property
    def place(self) -> str:
        """The endpoint in words, without the parts of a URL that may be secret."""
        if self.is_ours:
            return f"the engine of {self.name}"
        return f"{self.name} at {shown_url(self.base_url)}"

    def __repr__(self) -> str:
        where = self.socket_path or shown_url(self.base_url)
        return f"<Endpoint {self.model_id} ({self.backend}) at {where}>"

    def to_wire(self) -> dict[str, Any]:
        """The endpoint as JSON-serialisable data; `from_wire` is the inverse."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Endpoint:
        """The endpoint that `to_wire` described."""
        fields = dict(data)
        fields["capabilities"] = Capabilities(**fields["capabilities"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The report of an engine once it is ready.

    `buffers` maps device to the bytes of the buffers that it reported. `storage` says where the load read
    the file: `cold` (from the disk) or `staged` (from the page cache). Times are monotonic nanoseconds
    of the machine. `phases` are the begins of `header`, `weights` and `buffers`, as far as they are known.
    """

    started_ns: int
    ready_ns: int
    storage: Literal["cold", "staged"]
    file_bytes: int
    read_bytes: int
    buffers: Mapping[str, int]
    pid: int | None = None
    phases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Death:
    """How an engine ended by itself, without `stop`."""

    message: str
    exit_code: int | None
    log_tail: tuple[str, ...]
    out_of_memory: bool = False

    def error(self, model: str) -> KeepwarmError:
        """The error for the engine's requests; `model` is its name in the message."""
        if self.out_of_memory:
            return OutOfMemory(
                f"{self.message}: it was refused bytes.",
                hint="Use a smaller context or fewer slots. If it needs more than is booked for it, raise"
                " [keeper] engine_margin.",
                model=model,
                exit_code=self.exit_code,
                log_tail=list(self.log_tail),
            )
        return EngineDied(
            f"{self.message}.",
            hint="The next request starts it again. Its last lines are in `log_tail`.",
            model=model,
            exit_code=self.exit_code,
            log_tail=list(self.log_tail),
        )


@dataclass(frozen=True, slots=True)
class SlotSigns:
    """An engine's report on all its slots together.

    Attributes:
        busy: how many slots work on a request.
        prompting: whether a busy slot has no token yet, because it evaluates a prompt in batches.
        moved: figures that change as soon as any slot makes progress.
    """

    busy: int
    prompting: bool = False
    moved: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Signs:
    """Signs of life of an engine at one moment.

    Attributes:
        reachable: whether its socket exists. Without it no request reaches the engine.
        stopped: whether its process is stopped, by a signal or a debugger.
        cpu_s: the CPU seconds that its process has used; None where they are not known.
        disk_bytes: the bytes that its process has read from disks.
        elsewhere: whether other processes compute for it, so that its own may be idle meanwhile.
        slots: the state of its slots; None where it was not asked or did not answer.
        answers: whether it answers at all; it may be too busy to report its slots.
        well: whether an engine that has no way to report its slots answers in full.
    """

    reachable: bool = True
    stopped: bool = False
    cpu_s: float | None = None
    disk_bytes: int = 0
    elsewhere: bool = False
    slots: SlotSigns | None = None
    answers: bool = True
    well: bool = False


class Engine(Protocol):
    """The lifecycle of one engine. An instance starts once and stops once."""

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go once `start` has returned."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """The engine's features."""
        ...

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The engine's last log lines."""
        ...

    def log_since(self, seen: int) -> tuple[int, tuple[str, ...]]:
        """How many lines its log has had, and those after the first `seen` that are still kept."""
        ...

    async def prepare(self, placement: Placement) -> None:
        """Do the part of a start that needs no bytes, while an engine that is being stopped still has them.

        Optional; `start` with the same placement goes on from there, and `stop` undoes it.

        Raises:
            KeepwarmError: the engine cannot be started at all.
        """
        ...

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        """Load the model exactly as placed; `on_progress` gets the fraction loaded, 0 to 1.

        Raises:
            LoadFailed: the engine ended or refused; `OutOfMemory` when the device refused the bytes.
            EngineTimeout: no progress for the stall time-out.
        """
        ...

    async def wait_death(self) -> Death:
        """Return when the engine has ended without `stop` having been called."""
        ...

    async def stop(self, *, grace_s: float) -> None:
        """End the engine: politely, and after `grace_s` by force. Idempotent."""
        ...

    async def sleep(self) -> Mapping[str, int] | None:
        """Leave the devices and keep the processes, so that `start` with the same placement is short.

        Returns:
            The bytes by device that it holds meanwhile; None for an engine that does not sleep.
        """
        ...

    def kill(self) -> None:
        """End the engine's processes at once and by force, as a crash would; never raises or waits.

        `wait_death` and a `start` under way see it as a death. `stop` removes what is left of it.
        """
        ...

    async def healthy(self) -> bool:
        """Whether the engine answers now."""
        ...

    async def signs(self, *, ask: bool) -> Signs | None:
        """The engine's signs of life now; None when it has ended, or has none to watch.

        Args:
            ask: whether to ask the engine itself, which costs it a little, or only the kernel.
        """
        ...

    def overgrown(self, measured: Mapping[str, int | None]) -> OutOfMemory | None:
        """The error if the engine takes much more than its booking, else None. Cheap for the host.

        Args:
            measured: bytes by device, as measured before; the host's are read now.
        """
        ...

    def ceilings(self) -> Mapping[str, int]:
        """The most bytes that the engine may take, by device; a device without a bound is left out."""
        ...

    def memory(self) -> Mapping[str, int | None]:
        """Measured bytes by device, now (PSS on the host, NVML's process figure on a GPU).

        None means that the engine takes an unknown number of bytes there. A device where it takes none is
        left out. An engine that has ended takes none anywhere.
        """
        ...

    def cached_bytes(self) -> int:
        """The host's bytes in `memory` that are pages of mapped files, which also count as free."""
        ...

    def keep_kv_in(self, folder: Path) -> None:
        """Set the folder of saved KV state, before `start`. The default one is removed with the engine."""
        ...

    async def kv_tokens(self) -> Mapping[int, int]:
        """The number of tokens in each slot that served since the start."""
        ...

    async def save_kv(self, slot: int, name: str) -> int:
        """Save a slot's KV state under a name; returns its bytes. Needs `capabilities.save_restore`."""
        ...

    async def restore_kv(self, slot: int, name: str) -> int:
        """Restore a slot that `save_kv` saved; returns the number of restored tokens."""
        ...
