"""The sections of a configuration that are about the machine: budget, keeper, kv, trace, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shim.config.schema.device_values import Device, Devices, DeviceShare, RpcEndpoints, ScrapePlace
from shim.config.schema.values import (
    Amount,
    FilePath,
    Limit,
    Reserve,
    Seconds,
    Size,
    SomeSeconds,
    Timeout,
    Url,
    parse_limit,
)

KIB = 1024
MIB = 1024**2
GIB = 1024**3
OFF = False
ON = True
AMOUNT_ALLOWED = 'a number of bytes, a text with a unit ("6GiB", "500MB") or a percentage ("80%")'
SECONDS_ALLOWED = 'seconds, or a text such as "500ms", "90s", "5m", "1h30m"'
TIMEOUT_ALLOWED = f"{SECONDS_ALLOWED}; -1 or anything below 0 for no time-out"


Trust = Literal["secret", "program", "run", "folder", "address"]
"""Why a file that was merely found may not use a key: see `shim.config.trust`."""


def key(
    default: object, what: str, allowed: str, *, trust: Trust | None = None, **constraints: Any
) -> Any:
    """A field of a section: its default, what it means, and what may be written there.

    A key with `trust` spends a secret, runs a program, or names a folder that is written to or an address
    that is connected to.
    """
    extra: dict[str, Any] = {"x-allowed": allowed} | ({"x-trust": trust} if trust else {})
    return Field(default=default, description=what, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """The base of all sections: frozen, no silent conversion, no unknown key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class BudgetSection(Section):
    """How many bytes may be booked, on which device, and how long requests wait."""

    device: Device = key(
        "auto",
        "The device whose bytes are budgeted; `auto` takes every GPU, or the host without one.",
        '"auto", "host", "cuda:N", a GPU\'s UUID or "RPCn" (N and n count from 0)',
    )
    devices: Devices | None = key(
        None,
        "Several devices, instead of `device`. Each may have its own `limit` and `reserve`; what is "
        "left out is that of `[budget]`. The host is always there for what stays on the CPU; name it "
        "to bound it.",
        'a list of names, or of tables such as { device = "cuda:1", limit = "20GiB" }',
    )
    rpc: RpcEndpoints = key(
        (),
        "Where `ggml-rpc-server`s listen; their devices are `RPC0`, `RPC1`, ... in this order. Each "
        "needs a `limit` in bytes: what a server reports is its whole machine.",
        'a list of "host:port", each once (at most 16)',
        trust="address",
    )
    limit: Limit = key(
        Amount(share=0.9),
        "Bytes that models may take on a device; a percentage is of the device's total.",
        f"{AMOUNT_ALLOWED}, above zero and at most 100%",
    )
    reserve: Reserve | None = key(
        None,
        "Bytes of a device that stay free for other programs: models get the smaller of `limit` "
        "and total - reserve. Left out: the smaller of 2GiB and 5%.",
        f"{AMOUNT_ALLOWED}, below 100%",
    )
    policy: Literal["forecast", "idle-cost", "lfu-decay", "lru", "ttl"] = key(
        "forecast",
        "How victims of an eviction are chosen.",
        '"forecast", "idle-cost", "lfu-decay", "lru", "ttl"',
    )
    preempt: bool = key(
        ON,
        "Whether a request of higher priority may interrupt the answer of a lower one, which goes on "
        "after it. Only what is streamed, or of a priority below 0, is interrupted, and only where all "
        "messages are text and the options are plain sampling ones: no grammar, schema, tools, log "
        "probabilities, slot or extra fields, and no seed at a temperature above 0.",
        "true or false",
    )
    max_wait: Seconds = key(
        30.0,
        "How long a waiting request can be passed over for others whose model is resident.",
        SECONDS_ALLOWED,
    )
    max_queue: int = key(
        256,
        "Requests that may wait at once, all models together; one more gets QueueFull.",
        "a whole number, 0 or more",
        ge=0,
    )
    max_queue_per_model: int | None = key(
        None,
        "Requests that may wait for any one model; left out: only `max_queue` counts.",
        "a whole number, 0 or more",
        ge=0,
    )

    prefetch: Literal[True, False, "spare", "stage"] = key(
        ON,
        "What declared uses may cause ahead: `true` loads the next engine where no request needs "
        "the bytes, and reads its file into the page cache where a request needs them; "
        '`"spare"` loads only while a core is free of generating (see `threads`), which is the faster '
        'choice without a GPU when engines compute on all cores; `"stage"` only reads; `false` does '
        "neither.",
        'true, false, "spare" or "stage"',
    )
    stage_rate: Size = key(
        Amount(fixed_bytes=10**9),
        "Bytes a second that are read ahead at most; 0 is no bound.",
        'a number of bytes, or a text with a unit ("500MB")',
    )

    @property
    def shares(self) -> tuple[DeviceShare, ...]:
        """The devices that are named, `auto` among them."""
        return self.devices if self.devices is not None else (DeviceShare(self.device),)

    def reserve_bytes(self, total_bytes: int, share: DeviceShare | None = None) -> int:
        """Bytes kept free on a device of `total_bytes`; a share's own reserve takes precedence."""
        reserve = (share.reserve if share else None) or self.reserve
        if reserve is None:
            return min(2 * GIB, total_bytes // 20)
        return reserve.resolve(total_bytes)

    def limit_bytes(self, total_bytes: int, share: DeviceShare | None = None) -> int:
        """Bytes that may be booked on a device of `total_bytes`; never negative."""
        limit = (share.limit if share else None) or self.limit
        free_for_models = total_bytes - self.reserve_bytes(total_bytes, share)
        return max(0, min(limit.resolve(total_bytes), free_for_models))


def budget_conflicts(given: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Contradictions between the keys of `[budget]`: the key, what is wrong, what is allowed."""
    if given.get("devices") is not None and "device" in given:
        yield "devices", "device is given too", "one of them"
    named = dict(_named(given))
    remote = [name for name in named if name.startswith("RPC")]
    if remote and "rpc" not in given:
        yield "rpc", f"no endpoint for device {remote[0]}", 'a list of "host:port"'
    if "rpc" in given and not remote:
        found = f'endpoints with device "{", ".join(named)}"'
        yield "rpc", found, 'leave it out, or device = "RPC0"'
    for name in remote:
        limit = named[name] if named[name] is not None else given.get("limit")
        if not _in_bytes(limit):
            found = "no limit" if limit is None else f'"{limit}"'
            yield "limit", f"{found} for device {name}", "bytes, such as 6GiB (no percentage)"


def _named(given: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The devices as they were written, each with a limit of its own or None."""
    several = given.get("devices")
    written = several if isinstance(several, list | tuple) else [given.get("device", "auto")]
    for item in written:
        name, limit = item, None
        if isinstance(item, Mapping):
            name, limit = item.get("device"), item.get("limit")
        elif isinstance(item, DeviceShare):
            name, limit = item.device, item.limit
        if isinstance(name, str):
            yield name, limit


def _in_bytes(limit: object) -> bool:
    try:
        return parse_limit(limit).fixed_bytes is not None
    except ValueError:
        return limit is not None  # the mistake is reported already


class KeeperSection(Section):
    """The background process that owns the books and the engines."""

    idle_exit: Timeout = key(
        1800.0,
        "How long the keeper stays without a client when it started by itself.",
        TIMEOUT_ALLOWED,
    )
    stall_timeout: Seconds = key(
        30.0,
        "An engine that makes no progress for this long is ended and replaced, while it loads and while "
        "it answers. One that still computes a batch of a prompt may take ten times as long.",
        SECONDS_ALLOWED,
    )
    lease_timeout: Seconds = key(
        60.0,
        "A client that leaves its engine idle for this long while another request waits for it is asked "
        "whether it is still there; without an answer its lease ends.",
        SECONDS_ALLOWED,
    )
    engine_margin: Size = key(
        Amount(fixed_bytes=512 * MIB),
        "What an engine may take beyond its booking before it is ended, or a quarter of its booking "
        "where that is more. 0 is no bound.",
        'a number of bytes, or a text with a unit ("512MiB")',
    )
    stop_grace: Seconds = key(
        2.0, "How long an engine may take to stop politely before it is killed.", SECONDS_ALLOWED
    )
    trace: Literal["off", "ring"] = key(
        "off",
        '`"ring"`: the keeper remembers the requests of the last minutes, so that `keepwarm trace '
        "capture` can show a slow one after it happened.",
        '"off" or "ring"',
    )
    trace_last: SomeSeconds = key(
        900.0, "How far back that goes; at most 20,000 requests.", f"{SECONDS_ALLOWED}, above 0"
    )


class KvSection(Section):
    """KV state that is kept on disk while its model is not loaded."""

    enabled: bool = key(
        ON,
        "Save the KV state of conversations and warm prompts when a model is evicted, and restore it "
        "when the model returns.",
        "true or false",
    )
    limit: Size = key(
        Amount(fixed_bytes=2 * GIB),
        "Bytes of all saved state; what was of no use for longest goes first. 0 saves nothing.",
        'a number of bytes, or a text with a unit ("6GiB", "500MB")',
    )
    folder: FilePath | None = key(
        None,
        "Where it is kept (mode 0700); left out: `keepwarm/kv` in the user's state folder. In a folder "
        "that holds other things or is not private, a sub-folder `keepwarm-kv` is used. A folder in RAM "
        "(`/dev/shm`) is faster, and its bytes are not booked.",
        "a path; a relative one starts at this file's folder",
        trust="folder",
    )

    max_age: Seconds = key(
        86400.0,
        "How long a saved conversation is kept after its last use, over restarts of the keeper, too. 0: "
        "conversations end with the keeper.",
        SECONDS_ALLOWED,
    )

    @property
    def limit_bytes(self) -> int:
        """The byte budget; 0 when no state is to be saved."""
        return self.limit.resolve(0) if self.enabled else 0


class TraceSection(Section):
    """The trace files that are written about each run."""

    enabled: bool = key(
        OFF,
        "Write a trace of every run: of each command, and of a Python program's calls.",
        "true or false",
    )
    folder: FilePath | None = key(
        None,
        "Where traces and `runs.jsonl` go; left out: `keepwarm/runs` in the user's state folder.",
        "a path; a relative one starts at this file's folder",
        trust="folder",
    )
    content: bool = key(OFF, "Write prompts and answers into the trace.", "true or false")
    compress: bool = key(OFF, "Write `.json.gz` instead of `.json`.", "true or false")
    sample: float = key(
        1.0,
        "The share of the requests that are recorded. Loads, evictions and the books are recorded always.",
        "a number from 0 to 1",
        ge=0.0,
        le=1.0,
    )
    max_bytes: Size = key(
        Amount(fixed_bytes=256 * MIB),
        "Size of a trace's file at which the run goes on in the next one, with a line of its own; 64 KiB "
        "at least.",
        'a number of bytes, or a text with a unit ("1GiB", "500MB")',
    )
    max_age: Seconds | None = key(
        None,
        "Age of a trace's file at which the run goes on in the next one, a second at least; left out: no "
        "limit.",
        SECONDS_ALLOWED,
    )
    otlp: Url | None = key(
        None,
        "An OpenTelemetry collector that gets the same spans over OTLP/HTTP (`pip install "
        "'keepwarm[otlp]'`).",
        "an http or https address",
        trust="address",
    )

    @property
    def most_bytes(self) -> int:
        """`max_bytes` as a number; fewer would make a file of every batch."""
        return max(64 * KIB, self.max_bytes.resolve(0))

    @property
    def most_age_s(self) -> float | None:
        """`max_age`, where there is one; a run writes ten times a second."""
        return None if self.max_age is None else max(1.0, self.max_age)


class MetricsSection(Section):
    """What the keeper tells programs that watch it."""

    prometheus: ScrapePlace | None = key(
        None,
        "Where Prometheus reads the keeper's metrics (`pip install 'keepwarm[prometheus]'`). Every user "
        "of the machine can read a port; a socket has mode 0600.",
        '"host:port", or the path of a Unix socket, with a slash in it',
        trust="address",
    )
    otlp: Url | None = key(
        None,
        "An OpenTelemetry collector that gets the metrics over OTLP/HTTP (`pip install "
        "'keepwarm[otlp]'`).",
        "an http or https address",
        trust="address",
    )
    interval: Seconds = key(
        60.0, "How often they are sent to `otlp`: every second at most.", SECONDS_ALLOWED
    )
